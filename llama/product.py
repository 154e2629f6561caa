"""x @ weightᵀ, by whichever of torch's libraries is faster at it. Knows no model.

On a CPU torch multiplies fp32 matrices by MKL, or what it was built with. oneDNN comes with torch
too; it is faster where much is multiplied, and far faster where a few rows meet a large weight, as
in decoding. Its operation has no derivative, so that is here:
```
  y = x Wᵀ       by oneDNN
  dx = dy W      by oneDNN
  dW = dyᵀ x     by MKL, which is the faster one at this
```
The two round sums differently. So shapes alone say which of them multiplies, not whether gradients
are wanted: a reference is, to the last bit, what is trained against it.
"""

# C numbers in, F numbers out

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**18  # numbers in a weight that oneDNN multiplies sooner whatever the rows ...
MUCH = 2**23  # ... and rows times numbers of a smaller one
ONEDNN = None  # its operation
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    ONEDNN = torch.ops.mkldnn._linear_pointwise.default


class Linear(nn.Linear):
    """A matrix without bias, whose product is `product`'s."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., F] of [..., C]."""
        return product(input, self.weight)


def product(x_C: Tensor, weight_FC: Tensor) -> Tensor:
    """[..., F] of x [..., C]."""
    if torch.compiler.is_compiling() or not _for_onednn(x_C, weight_FC):
        return F.linear(x_C, weight_FC)
    if not torch.is_grad_enabled():
        return _by_onednn(x_C, weight_FC)
    y_F: Tensor = _Product.apply(x_C, weight_FC)
    return y_F


class _Product(torch.autograd.Function):
    """By oneDNN. Of x nothing is kept where the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x_C: Tensor, weight_FC: Tensor) -> Tensor:
        ctx.save_for_backward(x_C if ctx.needs_input_grad[1] else None, weight_FC)
        return _by_onednn(x_C, weight_FC)

    @staticmethod
    def backward(ctx: Any, grad_F: Tensor) -> Any:
        x_C, weight_FC = ctx.saved_tensors
        x_grad_C = weight_grad_FC = None
        if ctx.needs_input_grad[0]:
            x_grad_C = _by_onednn(grad_F, weight_FC.t())
        if x_C is not None:
            weight_grad_FC = grad_F.flatten(0, -2).t() @ x_C.flatten(0, -2)
        return x_grad_C, weight_grad_FC


def _by_onednn(x_C: Tensor, weight_FC: Tensor) -> Tensor:
    assert ONEDNN is not None
    y_F: Tensor = ONEDNN(x_C, weight_FC, None, "none", [], "")
    return y_F


def _for_onednn(x_C: Tensor, weight_FC: Tensor) -> bool:
    numbers, rows = weight_FC.numel(), x_C.numel() // x_C.shape[-1]
    if ONEDNN is None or (numbers < LARGE and rows * numbers < MUCH):
        return False
    return weight_FC.device.type == "cpu" and x_C.dtype == weight_FC.dtype == torch.float32
