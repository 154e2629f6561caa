"""SwiGLU's backward pass by hand: autograd's gradients, in turns of tokens, and less is kept."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_llama import tiny_model
from torch import Tensor

from llama import swiglu as module
from llama.lora import Lora, attach
from llama.model import FeedForward
from llama.swiglu import swiglu

C, WIDE = 12, 20
NAMES = ("w1", "w2", "w3")
BF16_STEP = 2**-8


def inputs(tokens: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Any]:
    """x, w1, w2 and w3, which all learn, and a gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(*tokens, C), (WIDE, C), (C, WIDE), (WIDE, C), (*tokens, C)]
    *learn, grad = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in learn], grad


def plain(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


@pytest.mark.parametrize("turn", [1, 3, 7, 14, 15, 256])
@pytest.mark.parametrize("tokens", [(2, 7), (14,), (0,)], ids=str)
def test_output_is_the_same_to_the_bit_and_gradients_but_for_rounding(
    tokens: tuple[int, ...], turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS", turn)
    learn, grad = inputs(tokens)
    found, expected = swiglu(*learn), plain(*learn)
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, learn, grad), torch.autograd.grad(expected, learn, grad)
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turn", [3, 256])
def test_gradients_are_what_a_small_change_does(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own check, by differences in float64."""
    monkeypatch.setattr(module, "TOKENS", turn)
    learn, _ = inputs((2, 4), torch.float64)
    assert torch.autograd.gradcheck(swiglu, learn)


def test_a_token_that_is_left_out_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the last turn without its tokens."""
    monkeypatch.setattr(module, "TOKENS", 5)
    some = module._some

    def forgets(*of: Any, first: bool) -> None:
        some(*of, first=first) if len(of[1]) == 5 else of[4].zero_()

    monkeypatch.setattr(module, "_some", forgets)
    learn, _ = inputs((12,), torch.float64)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(swiglu, learn)


def test_bf16_sums_are_not_rounded_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4,000 tokens, as near to fp32's as autograd's own."""
    monkeypatch.setattr(module, "TOKENS", 4)
    learn, grad = inputs((4000,), torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in learn]
    expected = torch.autograd.grad(plain(*exact), exact, grad.float())
    errors = []
    for function in (swiglu, plain):
        found = torch.autograd.grad(function(*learn), learn, grad)
        assert all(one.dtype == torch.bfloat16 for one in found)
        errors.append(
            [float((one - other).norm() / other.norm()) for one, other in zip(found, expected)]
        )
    ours, theirs = errors
    assert all(one < 1.2 * other + 1e-3 for one, other in zip(ours, theirs)), errors
    assert max(ours) < 2 * BF16_STEP


def test_of_a_token_its_input_and_two_products_are_kept() -> None:
    learn, _ = inputs((2, 7))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swiglu(*learn)
    assert [tuple(tensor.shape) for tensor in kept[:3]] == [(14, C), (14, WIDE), (14, WIDE)]
    assert [tensor.data_ptr() for tensor in kept[3:]] == [w.data_ptr() for w in learn[1:]]
    assert kept[0].data_ptr() == learn[0].data_ptr()


@pytest.mark.parametrize("frozen", [("w1",), ("w2",), ("w1", "w3"), NAMES], ids="-".join)
def test_a_frozen_matrix_gets_no_gradient(frozen: tuple[str, ...]) -> None:
    learn, grad = inputs((2, 7))
    expected = torch.autograd.grad(swiglu(*learn), learn, grad)
    for name, weight in zip(NAMES, learn[1:]):
        weight.requires_grad_(name not in frozen)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = swiglu(*learn)
    assert (learn[0].data_ptr() in [t.data_ptr() for t in kept]) != ({"w1", "w3"} <= {*frozen})
    y.backward(grad)
    for name, tensor, gradient in zip(("x", *NAMES), learn, expected):
        assert tensor.grad is None if name in frozen else torch.equal(tensor.grad, gradient)


def test_the_model_takes_it_where_it_learns_and_has_no_adapters_there(monkeypatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("llama.model.swiglu", lambda *of: called.append("by hand") or plain(*of))
    monkeypatch.setattr("llama.model._gated", lambda g, u: called.append("plain") or F.silu(g) * u)
    for targets, way in ((None, "by hand"), (("wq",), "by hand"), (("w2",), "plain")):
        model = tiny_model()
        if targets:
            attach(model, Lora(2, 4.0, targets))
        ffn = model.layers[0].ffn
        assert isinstance(ffn, FeedForward)
        x = torch.randn(1, 3, model.config.dim)
        called.clear()
        ffn(x)
        with torch.no_grad():
            ffn(x)
        assert called == [way, "plain"], targets
