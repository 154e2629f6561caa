"""What can be reached from where, over all imports together, and who may print."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOOP = ("llama", "sampling", "judge", "dpo", "loop")
SOURCES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for package in (*LOOP, "seed")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def module_name(path: Path) -> str:
    """`seed/world/tasks.py` → `seed.world.tasks`, `seed/__init__.py` → `seed`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_a_script(path: Path, source: str) -> bool:
    """A face or a maker of data: something that is run, not imported."""
    return path.name == "__main__.py" or 'if __name__ == "__main__":' in source


def imported(path: Path, source: str) -> set[str]:
    """Every dotted name that a source may import, with all packages above it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: len(path.parts) - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("seed.world"):
            found.add(node.value)  # import_module("seed.world…")
    return {name.rsplit(".", n)[0] for name in found for n in range(name.count(".") + 1)}


def reached(start: str, sources: Mapping[Path, str]) -> set[str]:
    """All names that importing a module may import in the end."""
    of = {module_name(path): (path, source) for path, source in sources.items()}
    seen: set[str] = set()
    waiting = {start}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in of:
            waiting |= imported(*of[name]) - seen
    return seen


def reaching(
    goal: str, sources: Mapping[Path, str], packages: tuple[str, ...], scripts: bool
) -> set[str]:
    """The modules of these packages from which `goal` is reached."""
    return {
        module_name(path)
        for path, source in sources.items()
        if path.parts[0] in packages and (scripts or not is_a_script(path, source))
        if goal in reached(module_name(path), sources)
    }


def printing(path: Path, source: str) -> bool:
    allowed = path.parts[0] == "loop" or is_a_script(path, source)
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return not allowed and any(isinstance(f, ast.Name) and f.id == "print" for f in calls)


def touching_ranks(source: str) -> bool:
    """`torch.distributed` by attribute: that works without importing it."""
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return any(ast.unparse(node) == "torch.distributed" for node in attributes)


def test_the_oracle_cannot_be_reached_from_the_loop():
    assert reaching("seed.world", SOURCES, LOOP, scripts=True) == set()


def test_neither_judge_nor_seed_reaches_torch_or_llama():
    for goal in ("torch", "llama"):
        found = reaching(goal, SOURCES, ("judge", "seed"), scripts=False)
        assert found <= {"seed.world.base"}  # makes M0; nothing but its face reaches it


def test_importing_them_does_not_import_torch():
    code = (
        "import sys, judge, seed.read; sys.exit('torch' in sys.modules or 'llama' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_faces_and_the_loop_print():
    assert [str(path) for path, source in SOURCES.items() if printing(path, source)] == []


def test_ranks_are_not_reached_by_attribute():
    allowed = {Path("llama/parallel.py"), Path("dpo/trainer.py")}
    assert {path for path, source in SOURCES.items() if touching_ranks(source)} <= allowed


MADE_UP = {
    Path("seed/__init__.py"): "",
    Path("seed/world/__init__.py"): "",
    Path("seed/world/oracle.py"): "import re",
    Path("seed/world/base.py"): 'import torch\nif __name__ == "__main__":\n    pass',
    Path("seed/rows.py"): "from .world.oracle import score",
    Path("loop/clean.py"): "import json\nfrom judge.pairs import answer_pairs",
    Path("loop/direct.py"): "def f():\n    from seed import world",
    Path("loop/around.py"): "import seed.rows",
    Path("loop/dynamic.py"): "from importlib import import_module as i\ni('seed.world.oracle')",
    Path("loop/__main__.py"): "from seed.world.oracle import score",
    Path("judge/pairs.py"): "from ..sampling import respond",
    Path("judge/score.py"): "from judge import pairs",
    Path("judge/__main__.py"): "import torch",
    Path("sampling/respond.py"): "import torch.nn as nn",
}


def test_the_checks_see_what_they_look_for():
    guilty = {"loop.direct", "loop.around", "loop.dynamic", "loop.__main__"}
    assert reaching("seed.world", MADE_UP, LOOP, scripts=True) == guilty
    # judge.pairs climbs out of its package; judge.score meets torch two files further on.
    assert imported(Path("judge/pairs.py"), "from ..sampling import respond") >= {
        "sampling.respond"
    }
    found = reaching("torch", MADE_UP, ("judge", "seed"), scripts=False)
    assert found == {"judge.pairs", "judge.score"}
    assert printing(Path("dpo/losses.py"), "def f():\n    print(1)")
    assert not printing(Path("dpo/losses.py"), "'print(1)'\nfootprint(1)")
    assert not printing(Path("dpo/__main__.py"), "print(1)")
    assert not printing(Path("loop/run.py"), "print(1)")
    assert touching_ranks("import torch\ntorch.distributed.barrier()")
    assert not touching_ranks("import torch\ntorch.nn.Linear")
