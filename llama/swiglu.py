"""SwiGLU with its three matrices, and its backward pass by hand. Knows nothing of the model around.

```
  g = x w1ᵀ        u = x w3ᵀ          a = silu(g) u         y = a w2ᵀ
  da = dy w2       du = da silu(g)    dg = da u silu'(g)    dx = dg w1 + du w3
  dw1 = dgᵀ x      dw3 = duᵀ x        dw2 = dyᵀ a
```
Left to autograd silu(g) and a are kept too, though g and u say what they are. By hand a token keeps
x, g and u; and in the backward pass some tokens have their turn after others, so that what is made
of them is still in the processor's cache when it is needed.
"""

# N tokens, M of them at a time, C width, F width of the SwiGLU

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOKENS = 256  # at a time: with fewer, products are small

_silu = torch.ops.aten.silu.out
_silu_backward = torch.ops.aten.silu_backward.grad_input


def swiglu(x_BTC: Tensor, w1_FC: Tensor, w2_CF: Tensor, w3_FC: Tensor) -> Tensor:
    """w2(silu(w1 x) · w3 x), as BTC."""
    y_BTC: Tensor = _ByHand.apply(x_BTC, w1_FC, w2_CF, w3_FC)
    return y_BTC


class _ByHand(torch.autograd.Function):
    """The same numbers, in the same operations; the gradients, but for the order of adding."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, w1_FC: Tensor, w2_CF: Tensor, w3_FC: Tensor) -> Tensor:
        x_NC = x_BTC.flatten(0, -2)
        # as operations that have their results returned: selective recomputation knows these
        g_NF, u_NF = x_NC.mm(w1_FC.t()), x_NC.mm(w3_FC.t())
        y_NC = F.silu(g_NF).mul_(u_NF).mm(w2_CF.t())
        _, w1_learns, _, w3_learns = ctx.needs_input_grad
        kept_NC = x_NC if w1_learns or w3_learns else None
        ctx.save_for_backward(kept_NC, g_NF, u_NF, w1_FC, w2_CF, w3_FC)
        return y_NC.view_as(x_BTC)

    @staticmethod
    def backward(ctx: Any, dy_BTC: Tensor) -> Any:
        x_NC, g_NF, u_NF, *weights = ctx.saved_tensors
        dy_NC = dy_BTC.flatten(0, -2)
        dx_NC = torch.empty_like(dy_NC)
        learn = ctx.needs_input_grad[1:]
        grads = [torch.empty_like(w) if learns else None for w, learns in zip(weights, learn)]
        count = _at_once(g_NF)
        spaces = g_NF.new_empty(4, count, g_NF.shape[1])
        for start in range(0, len(g_NF), count) or [0]:  # even of no token: gradients of zeros
            rows = slice(start, start + count)
            x_MC = None if x_NC is None else x_NC[rows]
            of_tokens = x_MC, g_NF[rows], u_NF[rows], dy_NC[rows], dx_NC[rows]
            _some(*of_tokens, weights, grads, spaces, first=start == 0)
        return dx_NC.view_as(dy_BTC), *grads


def _some(
    x_MC: Tensor | None,
    g_MF: Tensor,
    u_MF: Tensor,
    dy_MC: Tensor,
    dx_MC: Tensor,
    weights: list[Tensor],
    grads: list[Tensor | None],
    spaces: Tensor,
    first: bool,
) -> None:
    """The backward pass of some tokens: writes their dx, adds to the weights' gradients, or writes
    these too."""
    w1_FC, w2_CF, w3_FC = weights
    silu_MF, a_MF, da_MF, dg_MF = spaces[:, : len(g_MF)]
    _silu(g_MF, out=silu_MF)
    torch.mul(silu_MF, u_MF, out=a_MF)
    torch.mm(dy_MC, w2_CF, out=da_MF)
    du_MF = silu_MF.mul_(da_MF)
    _silu_backward(da_MF.mul_(u_MF), g_MF, grad_input=dg_MF)
    torch.mm(dg_MF, w1_FC, out=dx_MC).addmm_(du_MF, w3_FC)
    for grad, dout_M, in_M in zip(grads, (dg_MF, dy_MC, du_MF), (x_MC, a_MF, x_MC)):
        if grad is not None:
            grad.addmm_(dout_M.t(), in_M, beta=0 if first else 1)  # with 0 it is not even read


def _at_once(g_NF: Tensor) -> int:
    """Tokens: all where there is no such cache, or where each further sum is rounded to bf16."""
    in_turns = g_NF.device.type == "cpu" and g_NF.dtype != torch.bfloat16
    return max(1, min(TOKENS, len(g_NF)) if in_turns else len(g_NF))
