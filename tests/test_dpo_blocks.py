"""Blocks that are compiled, or computed again in the backward pass, train the same model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import dpo, records, rows, sft, weights
from tiny_llama import tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpo.blocks import KEPT, running_blocks
from dpo.descent import forward_logps
from dpo.lines import row_line
from dpo.settings import RECOMPUTE, TrainSettings
from llama import Llama, fingerprint

LINES = [row_line(row, index, 64) for index, row in enumerate(rows(6))]


class Counted(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[Any, int] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
        self.times[operation] = self.times.get(operation, 0) + 1
        return operation(*args, **(kw or {}))


def gradients(model: Llama, dropout: float = 0.0, **how: Any) -> list[Tensor]:
    """The loss, and the gradient of each weight."""
    model.train()
    model.dropout = dropout
    with torch.random.fork_rng(), running_blocks(model, **how):
        torch.manual_seed(0)
        loss = -forward_logps(model, LINES, torch.device("cpu")).sum()
        loss.backward()
    found = [loss.detach(), *(weight.grad for weight in model.parameters())]
    model.zero_grad()
    return found


def kept_bytes(model: Llama, how: str) -> int:
    """Bytes that a forward pass leaves behind for the backward pass, the weights aside."""
    own = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    outer = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with outer, running_blocks(model, how):
        alive = forward_logps(model, LINES, torch.device("cpu"))
    assert alive.requires_grad
    return sum(kept.values())


def test_recomputation_changes_not_one_bit() -> None:
    model = tiny_model()
    plain = gradients(model, dropout=0.3)
    for how in ("selective", "full"):
        again = gradients(model, dropout=0.3, recompute=how)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)), how
    assert all("forward" not in vars(block) for block in model.layers)


def test_selective_computes_no_matrix_product_and_no_attention_again() -> None:
    def products(how: str) -> tuple[int, int]:
        with Counted() as counted:
            gradients(tiny_model(), recompute=how)
        heavy = sum(times for operation, times in counted.times.items() if operation in KEPT)
        return heavy, sum(counted.times.values())

    none, selective, full = (products(how) for how in RECOMPUTE)
    assert selective[0] == none[0] < full[0]
    assert none[1] < selective[1]  # yet norms and rotation are computed again


def test_full_keeps_less_than_none() -> None:
    assert kept_bytes(tiny_model(), "full") < 0.5 * kept_bytes(tiny_model(), "none")


@pytest.mark.parametrize("train", [sft, dpo])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_a_whole_training_is_the_same_to_the_bit(train: Callable[..., Any], how: str) -> None:
    plain, again = tiny_model(), tiny_model()
    train(plain, dropout=0.3, max_steps=3)
    train(again, dropout=0.3, max_steps=3, recompute=how)
    assert fingerprint(plain) == fingerprint(again)


def test_only_these_words_are_understood() -> None:
    with pytest.raises(ValueError, match="recompute must be one of none, selective, full, found T"):
        TrainSettings(learning_rate=1.0, recompute=True)  # type: ignore[arg-type]


# Compiled. torch's compiler warns of itself, and meets warnings of others while it traces.


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch.compile without its slow last part: what is tested is that blocks can be traced; the
    kernels are torch's."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    usual = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: usual(forward, backend=counter))
    yield counter
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("how", RECOMPUTE)
def test_compiled_equals_eager(traced: Any, how: str) -> None:
    plain = gradients(tiny_model())
    for a, b in zip(plain, gradients(tiny_model(), recompute=how, compiled=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert traced.frame_count == 2  # one graph, no break, for all layers but the last, and its own


@pytest.mark.filterwarnings("default")
def test_a_compiled_training_is_the_eager_one(traced: Any, tmp_path: Path) -> None:
    """Pairs and rows; the reference comes from compiled blocks, so the first margin is still 0."""
    how = {"max_steps": 10, "epochs": 3, "replay_weight": 0.1}
    two_steps: list[list[Tensor]] = []
    kinds: list[int] = []  # of compiled blocks by then: with gradients or not; the last its own

    def train(directory: Path | None, compile: bool) -> None:
        model = tiny_model()

        def look(taken: int, steps: int) -> None:
            if taken == 2:
                two_steps.append(weights(model))
                kinds.append(traced.frame_count)

        dpo(model, directory, look, **how, compile=compile)

    train(None, compile=False)
    train(tmp_path, compile=True)
    assert records(tmp_path)[0]["margin"] == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(*two_steps, rtol=0, atol=1e-5)
    assert len(records(tmp_path)) == 10
    assert kinds[0] == 0 < kinds[1] <= traced.frame_count < 16  # of shapes, not one for each step


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_kernels_compiled_for_a_gpu_give_the_same() -> None:
    model = tiny_model().cuda()
    device = torch.device("cuda")

    def loss(compiled: bool) -> Tensor:
        with running_blocks(model, compiled=compiled):
            return forward_logps(model, LINES, device).detach()

    torch.testing.assert_close(loss(True), loss(False), rtol=1e-4, atol=1e-4)
