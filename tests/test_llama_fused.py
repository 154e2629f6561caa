"""When small operations are compiled, and that it works without."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from llama import fused

CPU = torch.device("cpu")


class OnGpu(Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of each call: nothing is really compiled."""
    calls: list[str] = []

    def compile(function, **how):
        def other(*args):
            calls.append("compiled")
            return function(*args)

        return other

    monkeypatch.setattr(torch, "compile", compile)
    fused.can_compile.cache_clear()
    fused.compiled.cache_clear()
    yield calls
    fused.can_compile.cache_clear()
    fused.compiled.cache_clear()


@fused.fused(widths=1)
def doubled(x: Tensor) -> Tensor:
    return Tensor(x + x)


def test_it_is_compiled_on_a_gpu_in_inference_mode_alone(seen: list[str]) -> None:
    for make, inference, expected in (
        (torch.ones, True, []),
        (lambda n: torch.ones(n).as_subclass(OnGpu), False, []),
        (lambda n: torch.ones(n).as_subclass(OnGpu), True, ["compiled", "compiled"]),  # and a trial
    ):
        seen.clear()
        with torch.inference_mode(inference):
            assert doubled(make(2)).tolist() == [2, 2]
        assert seen == expected


def test_without_a_compiler_it_runs_as_written_after_one_warning(seen, monkeypatch) -> None:
    def refuse(function, **how):
        def fails(*args):
            raise RuntimeError("no C compiler\nand many more words")

        return fails

    monkeypatch.setattr(torch, "compile", refuse)
    with torch.inference_mode(), pytest.warns(UserWarning, match="slower.*: no C compiler$"):
        assert doubled(torch.ones(2).as_subclass(OnGpu)).tolist() == [2, 2]
    with torch.inference_mode():  # a warning would be an error here
        assert doubled(torch.ones(2).as_subclass(OnGpu)).tolist() == [2, 2]


@pytest.mark.filterwarnings("default")
def test_a_compiled_norm_and_rotation_are_those_as_written() -> None:
    from llama import model, norm

    draw = torch.Generator().manual_seed(0)
    x_BTC, weight_C = torch.randn(3, 5, 32, generator=draw), torch.randn(32, generator=draw)
    cos, sin = model.rotary_tables(torch.arange(15).view(3, 5), 16, 1e4)
    q_BTHD = x_BTC.unflatten(-1, (2, 16))
    for function, arguments in (
        (norm._normed.__wrapped__, (x_BTC, weight_C, 1e-5)),
        (model.rotate, (q_BTHD, cos, sin)),
    ):
        torch.testing.assert_close(fused.compiled(function)(*arguments), function(*arguments))


def test_widths_are_numbers_to_the_compiler_and_tokens_are_not() -> None:
    """Else it divides by what it reads at run time: slower than the memory by far."""
    for widths, expected in ((2, ["", "4", "16"]), (1, ["", "", "16"]), (0, ["", "", ""])):
        seen: list[list[str]] = []

        def keep_shape(module: GraphModule, examples: list[Tensor], seen=seen):
            [x_NHD] = [e for e in module.graph.find_nodes(op="placeholder") if e.name == "l_x_"]
            sizes = x_NHD.meta["example_value"].shape
            seen.append([str(size) if isinstance(size, int) else "" for size in sizes])
            return module.forward

        torch.compiler.reset()
        made = torch.compile(lambda x: x * 2, dynamic=True, backend=keep_shape)
        for tokens in (5, 7, 11):
            x_NHD = torch.ones(tokens, 4, 16)
            fused.mark_widths(x_NHD.ndim - widths, x_NHD)
            made(x_NHD)
        assert seen == [expected]  # compiled once
