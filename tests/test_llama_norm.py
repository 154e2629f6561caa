"""RMSNorm's backward pass by hand: autograd's gradients, and less kept for them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llama.norm import RMSNorm, _normed

SHAPES = [(3, 5, 32), (7, 24)]  # rows of tokens; tokens that were wanted
BF16_STEP = 2**-8


def norm_and_input(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[RMSNorm, Tensor, Tensor]:
    """Weights of both signs, one of them 0; input; a gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    norm = RMSNorm(shape[-1], 1e-5)
    norm.weight.data = torch.randn(shape[-1], generator=draw)
    norm.weight.data[3] = 0.0
    x, grad = (torch.randn(shape, generator=draw).to(dtype) for _ in range(2))
    return norm.to(dtype), (3 * x).requires_grad_(), grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_is_the_same_to_the_bit_and_gradients_but_for_rounding(shape: Any) -> None:
    norm, x, grad = norm_and_input(shape, torch.float32)
    found, expected = norm(x), _normed(x, norm.weight, norm.eps)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(norm(x), expected)
    inputs = [x, norm.weight]
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_what_a_small_change_does(shape: Any) -> None:
    """Central differences of the formula, in float64: an opinion that shares no code."""
    norm, x, grad = norm_and_input(shape, torch.float32)

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        unit = x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt()
        return (unit * weight * grad.double()).sum()

    found = torch.autograd.grad(norm(x), [x, norm.weight], grad)
    at = [x.detach().double(), norm.weight.detach().double()]
    for n, gradient in enumerate(found):
        for place in range(0, gradient.numel(), 5):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [value.clone() for value in at]
                moved[n].view(-1)[place] += step
                sides.append(formula(*moved))
            slope = (sides[0] - sides[1]) / 2e-5
            assert float(gradient.view(-1)[place]) == pytest.approx(float(slope), abs=2e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_gradients_are_fp32_ones_rounded(shape: Any) -> None:
    """Each sum is fp32's: what is left is a rounding of the result."""
    norm, x, grad = norm_and_input(shape, torch.bfloat16)
    found = torch.autograd.grad(norm(x), [x, norm.weight], grad)
    weight, x32 = norm.weight.detach().float(), x.detach().float()
    inputs = [x32.requires_grad_(), weight.requires_grad_()]
    expected = torch.autograd.grad(_normed(*inputs, norm.eps), inputs, grad.float())
    for one, other in zip(found, expected):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=BF16_STEP, atol=1e-4)


def test_of_a_token_its_input_and_a_number_are_kept() -> None:
    norm, x, _ = norm_and_input(SHAPES[0], torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm(x)
    assert [tuple(tensor.shape) for tensor in kept] == [(3, 5, 32), (3, 5, 1), (32,)]
    assert kept[0].data_ptr() == x.data_ptr()


def test_a_frozen_weight_gets_no_gradient() -> None:
    norm, x, grad = norm_and_input(SHAPES[0], torch.float32)
    expected = torch.autograd.grad(norm(x), x, grad)[0]
    norm.weight.requires_grad_(False)
    norm(x).backward(grad)
    assert norm.weight.grad is None and torch.equal(x.grad, expected)
