"""RMSNorm, and its backward pass by hand. Knows nothing of the model around it.

```
  y = x s w      s = 1 / √(mean x² + eps), of each token; w of each dimension
  dw = Σ p       over tokens, p = dy x s
  dx = s dy w - x s² (p · w) / C
```
Left to autograd the backward pass is twice as many passes over memory, and x s is kept for it; so a
token's x and s are all that is kept.
"""

# C width; the tokens' dimensions are B and T, or one

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llama.fused import fused


class RMSNorm(nn.Module):
    """A vector scaled to root mean square 1, then by a learnt weight (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """x / sqrt(mean(x²) + eps) · weight; fp32 until the weight: bf16 squares lose too much."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # which does it as well
            y_BTC: Tensor = _ByHand.apply(x_BTC, self.weight, self.eps)
            return y_BTC
        return _normed(x_BTC, self.weight, self.eps)


@fused(widths=1)
def _normed(x_BTC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    return _scaled(x_BTC, _scale(x_BTC, eps), weight_C)


def _scale(x_BTC: Tensor, eps: float) -> Tensor:
    """Of each token, BT1, in fp32."""
    return (x_BTC.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def _scaled(x_BTC: Tensor, scale_BT1: Tensor, weight_C: Tensor) -> Tensor:
    return (x_BTC.float() * scale_BT1).type_as(x_BTC) * weight_C


class _ByHand(torch.autograd.Function):
    """The same numbers, in the same operations, and the gradients of x and of the weight."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        scale_BT1 = _scale(x_BTC, eps)
        ctx.save_for_backward(x_BTC, scale_BT1, weight_C)
        return _scaled(x_BTC, scale_BT1, weight_C)

    @staticmethod
    def backward(ctx: Any, grad_BTC: Tensor) -> Any:
        x_BTC, scale_BT1, weight_C = ctx.saved_tensors
        x32_BTC, grad32_BTC = x_BTC.float(), grad_BTC.float()
        p_BTC = (x32_BTC * scale_BT1).mul_(grad32_BTC)
        back_BT1 = (p_BTC @ weight_C.float()).unsqueeze(-1).div_(-len(weight_C))
        back_BT1.mul_(scale_BT1).mul_(scale_BT1)
        x_grad_BTC = (grad32_BTC * weight_C).mul_(scale_BT1).addcmul_(x32_BTC, back_BT1)
        weight_grad_C = None
        if ctx.needs_input_grad[1]:
            weight_grad_C = p_BTC.flatten(0, -2).sum(0).type_as(weight_C)
        return x_grad_BTC.type_as(x_BTC), weight_grad_C, None
