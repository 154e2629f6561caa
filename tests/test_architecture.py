"""The star stays a star: who may import whom, who knows other ranks, and how long things may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("llama", "sampling", "judge", "dpo", "seed", "loop")
MAY_IMPORT = {
    "llama": set(),
    "sampling": {"llama"},
    "judge": set(),
    "dpo": {"llama"},
    "seed": set(),
    "loop": {"llama", "sampling", "judge", "dpo", "seed"},
}
WITHOUT_TORCH = ("judge", "seed")
FILES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


def is_a_face(path: Path) -> bool:
    """A `__main__.py` drives its neighbours, as train.py does; so does what makes the world."""
    return path.name == "__main__.py" or path.parent == ROOT / "seed" / "world"


def imports(source: str) -> set[str]:
    """Dotted names of the modules that a source imports anywhere, relative ones aside."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(source: str) -> set[str]:
    return {name.split(".")[0] for name in imports(source)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_star_stays_a_star(path):
    package = path.relative_to(ROOT).parts[0]
    source = path.read_text()
    assert "train" not in tops(source)
    if not is_a_face(path):
        neighbours = tops(source) & set(PACKAGES) - {package}
        assert neighbours <= MAY_IMPORT[package]
        assert package not in WITHOUT_TORCH or "torch" not in tops(source)
    if package == "loop":
        assert not any(name.startswith("seed.world") for name in imports(source))


def knows_ranks(source: str) -> bool:
    return any(name.startswith("torch.distributed") for name in imports(source))


def test_only_parallel_and_the_trainer_know_torch_distributed():
    knowing = {str(path.relative_to(ROOT)) for path in FILES if knows_ranks(path.read_text())}
    assert knowing <= {"llama/parallel.py", "dpo/trainer.py"}


def pickles(source: str) -> bool:
    """Whether a source writes pickles, or reads one that may run code."""
    for node in ast.walk(ast.parse(source)):
        call = ast.unparse(node) if isinstance(node, ast.Call) else ""
        if call.startswith(("pickle.", "torch.save(")) and "Error" not in call:
            return True
        if call.startswith("torch.load(") and "weights_only=True" not in call:
            return True
    return False


def test_nothing_of_ours_is_pickled():
    metas = (
        ROOT / "llama" / "meta.py"
    )  # writes Meta's own layout, which is a pickle; reads it safely
    assert {path for path in FILES if pickles(path.read_text())} <= {metas}
    assert "torch.load(" not in metas.read_text() or "weights_only=True" in metas.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_the_checks_see_what_they_look_for():
    assert tops("def f():\n    from dpo.losses import dpo_loss") == {"dpo"}
    assert knows_ranks("import torch.distributed as dist")
    assert knows_ranks("from torch import distributed")
    assert knows_ranks("from torch.distributed.fsdp import fully_shard")
    assert not knows_ranks("import torch")
    assert pickles("torch.save(x, f)") and pickles("x = [pickle.loads(b)]")
    assert pickles("torch.load(f)") and not pickles("torch.load(f, weights_only=True)")
