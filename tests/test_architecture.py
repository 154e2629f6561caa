"""The house's rules: who may import whom, what can be reached from where, who prints, who knows
other ranks, and how long things may be.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOOP = ("llama", "sampling", "judge", "dpo", "loop")
MAY_IMPORT = {
    "llama": set(),
    "sampling": {"llama"},
    "judge": set(),
    "dpo": {"llama"},
    "seed": set(),
    "loop": {"llama", "sampling", "judge", "dpo", "seed"},
    "controls": {
        "llama",
        "judge",
        "loop",
        "seed",
        "train",
    },  # an arm is the loop, one step replaced
    "bench": {"llama", "sampling", "judge", "dpo"},
}
WITHOUT_TORCH = ("judge", "seed")
# team.py: what ranks tell each other within a token; parallel.py has what they do between steps
KNOWING_RANKS = {Path("llama/parallel.py"), Path("llama/team.py")}
SOURCES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for package in MAY_IMPORT
    for path in sorted((ROOT / package).rglob("*.py"))
}
FILES = pytest.mark.parametrize("path", SOURCES, ids=str)


def module_name(path: Path) -> str:
    """`seed/world/tasks.py` → `seed.world.tasks`, `seed/__init__.py` → `seed`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_a_script(path: Path, source: str) -> bool:
    """A face or a maker of data: something that is run, not imported."""
    return path.name == "__main__.py" or 'if __name__ == "__main__":' in source


def is_a_face(path: Path) -> bool:
    """A `__main__.py` drives its neighbours, as train.py does; so does what makes the world."""
    return path.name == "__main__.py" or path.parent == Path("seed/world")


@cache
def imported(path: Path, source: str) -> frozenset[str]:
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
    return frozenset(name.rsplit(".", n)[0] for name in found for n in range(name.count(".") + 1))


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


def trespasses(path: Path, source: str) -> set[str]:
    """The names that a file imports though its package may not."""
    package, found = path.parts[0], imported(path, source)
    ours = (found & (MAY_IMPORT.keys() | {"train"})) - MAY_IMPORT[package] - {package}
    wrong = ours & {"train"} if is_a_face(path) else ours
    if package in WITHOUT_TORCH and not is_a_face(path):
        wrong |= found & {"torch"}
    return wrong | ({"seed.world"} & found if package == "loop" else set())


def printing(path: Path, source: str) -> bool:
    allowed = path.parts[0] == "loop" or is_a_script(path, source)
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return not allowed and any(isinstance(f, ast.Name) and f.id == "print" for f in calls)


def knows_ranks(path: Path, source: str) -> bool:
    """Whether a source uses `torch.distributed`; by attribute that works without importing it."""
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return "torch.distributed" in imported(path, source) or any(
        ast.unparse(node) == "torch.distributed" for node in attributes
    )


def pickles(source: str) -> bool:
    """Whether a source writes pickles, or reads one that may run code."""
    for node in ast.walk(ast.parse(source)):
        call = ast.unparse(node) if isinstance(node, ast.Call) else ""
        if call.startswith(("pickle.", "torch.save(")) and "Error" not in call:
            return True
        if call.startswith("torch.load(") and "weights_only=True" not in call:
            return True
    return False


@FILES
def test_the_star_stays_a_star(path):
    assert trespasses(path, SOURCES[path]) == set()


def test_the_oracle_cannot_be_reached_from_the_loop():
    assert reaching("seed.world", SOURCES, LOOP, scripts=True) == set()


def test_neither_judge_nor_seed_reaches_torch_or_llama():
    for goal in ("torch", "llama"):
        found = reaching(goal, SOURCES, WITHOUT_TORCH, scripts=False)
        assert found <= {"seed.world.base"}  # makes M0; nothing but its face reaches it


def test_importing_them_does_not_import_torch():
    code = (
        "import sys, judge, seed.read; sys.exit('torch' in sys.modules or 'llama' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_who_runs_on_one_rank_waits_for_no_fsdp():
    """Importing it is a quarter of all that is imported before a run says its first word."""
    code = "import sys, train; sys.exit('torch.distributed.fsdp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_parallel_and_team_know_other_ranks():
    assert {path for path, source in SOURCES.items() if knows_ranks(path, source)} <= KNOWING_RANKS


def test_only_faces_and_the_loop_print():
    assert [str(path) for path, source in SOURCES.items() if printing(path, source)] == []


def test_nothing_of_ours_is_pickled():
    metas = Path("llama/meta.py")  # writes Meta's own layout, which is a pickle; reads it safely
    assert {path for path, source in SOURCES.items() if pickles(source)} <= {metas}
    assert "torch.load(" not in SOURCES[metas] or "weights_only=True" in SOURCES[metas]


@FILES
def test_files_and_functions_stay_small(path):
    assert len(SOURCES[path].splitlines()) <= 300
    for node in ast.walk(ast.parse(SOURCES[path])):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_train_fits_two_screens():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 145


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


def test_the_walk_over_imports_sees_what_it_looks_for():
    guilty = {"loop.direct", "loop.around", "loop.dynamic", "loop.__main__"}
    assert reaching("seed.world", MADE_UP, LOOP, scripts=True) == guilty
    # judge.pairs climbs out of its package; judge.score meets torch two files further on.
    climbing = imported(Path("judge/pairs.py"), "from ..sampling import respond")
    assert climbing >= {"sampling.respond"}
    found = reaching("torch", MADE_UP, WITHOUT_TORCH, scripts=False)
    assert found == {"judge.pairs", "judge.score"}


def test_the_checks_of_a_file_see_what_they_look_for():
    losses = Path("dpo/losses.py")
    assert trespasses(losses, "def f():\n    from judge.pairs import answer_pairs") == {"judge"}
    assert trespasses(losses, "import llama.model, torch") == set()
    assert trespasses(Path("dpo/__main__.py"), "import judge\nimport train") == {"train"}
    assert trespasses(Path("judge/score.py"), "from torch import nn") == {"torch"}
    assert trespasses(Path("loop/report.py"), "import seed.world.tasks") == {"seed.world"}
    assert trespasses(Path("controls/arms.py"), "from train import SelfRewarding") == set()
    assert printing(losses, "def f():\n    print(1)")
    assert not printing(losses, "'print(1)'\nfootprint(1)")
    assert not printing(Path("dpo/__main__.py"), "print(1)")
    assert not printing(Path("loop/run.py"), "print(1)")
    for guilty in (
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed.fsdp import fully_shard",
        "import torch\ntorch.distributed.barrier()",
    ):
        assert knows_ranks(losses, guilty)
    assert not knows_ranks(losses, "import torch\ntorch.nn.Linear")
    assert pickles("torch.save(x, f)") and pickles("x = [pickle.loads(b)]")
    assert pickles("torch.load(f)") and not pickles("torch.load(f, weights_only=True)")
