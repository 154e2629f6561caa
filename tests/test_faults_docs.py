"""docs/faults.md names a test for every fault, and each of these tests is there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")


def missing(text: str) -> list[str]:
    """The tests that a text names and that are not there."""
    return [
        f"{file}::{name}"
        for file, name in re.findall(r"`(test_\w+\.py)::(\w+)`", text)
        if not (TESTS / file).exists() or name not in functions(TESTS / file)
    ]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|$", TABLE, re.M)
    assert [int(number) for number in rows] == list(range(1, 27))
    for row in re.findall(r"^\| \d+ \|.*\|$", TABLE, re.M):
        assert "::test_" in row or "`make soak`" in row, row
    assert missing(TABLE) == []


def test_a_test_that_is_gone_is_noticed() -> None:
    assert missing("`test_faults.py::test_gone`, `test_gone.py::test_x`") == [
        "test_faults.py::test_gone",
        "test_gone.py::test_x",
    ]
