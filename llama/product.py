"""x @ weightᵀ, by whichever of torch's libraries is faster at it. Knows no model.

On a CPU torch multiplies fp32 matrices by MKL, or what it was built with. Where a few rows meet a
large weight, as in decoding, oneDNN takes 0.4 to 0.9 of that time. It comes with torch too, as
an operation that torch's compiler uses. That has no derivative, it rounds sums in another order,
and it makes a kernel for each number of rows, of which packed lines have another one each step: so
it is for sampling alone, and a reference is computed as what is trained against it.
"""

# C numbers in, F numbers out

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**18  # numbers in a weight; a smaller one is multiplied sooner than oneDNN is called


class Linear(nn.Linear):
    """A matrix without bias, whose product is `product`'s."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., F] of [..., C]."""
        return product(input, self.weight)


def product(x_C: Tensor, weight_FC: Tensor) -> Tensor:
    """[..., F] of x [..., C]."""
    # asked in this order: torch's compiler does not know the mode, and would stop here
    sampling = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    if not sampling or not _for_onednn(weight_FC):
        return F.linear(x_C, weight_FC)
    y_F: Tensor = torch.ops.mkldnn._linear_pointwise.default(x_C, weight_FC, None, "none", [], "")
    return y_F


def _for_onednn(weight_FC: Tensor) -> bool:
    plain = weight_FC.device.type == "cpu" and weight_FC.dtype == torch.float32
    return plain and weight_FC.numel() >= LARGE and _has_onednn()


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
