"""AdamW over a model's weights, its moments in fp32 or bf16, and clipping. Knows no loss, no data.

Weights, gradients and moments may be cut across ranks: each rank updates its own part.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dpo.settings import TrainSettings
from llama.cut import is_cut, local_part
from llama.fused import can_compile, compiled
from llama.parallel import Group

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's m and v


def make_optimizer(
    model: nn.Module, settings: TrainSettings, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over what is not frozen, as the settings want it; only matrices decay."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in weights if weight.ndim > 1]
    gains = [weight for weight in weights if weight.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    if settings.moments == "float32":
        return torch.optim.AdamW(groups, betas=betas, fused=True)
    return NarrowAdamW(groups, getattr(torch, settings.moments), betas=betas)


class NarrowAdamW(torch.optim.AdamW):
    """AdamW that computes in fp32 and keeps its moments in another type, rounded to the nearest.

    In bf16 that saves 4 of a weight's 16 bytes. Nothing need be drawn to round it: with β2 = 0.95 a
    step moves v by 5 % of its distance to g², and bf16 tells 0.4 % apart. (With 0.999 v would
    stick.)
    """

    def __init__(self, groups: list[dict[str, Any]], dtype: torch.dtype, **how: Any) -> None:
        super().__init__(groups, **how)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    if not self.state[weight]:
                        begin_moments(self, weight)
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        state["step"] += 1
        parts = [weight, weight.grad, *(state[name] for name in MOMENTS)]
        x, g, m, v = map(local_part, parts)
        update = compiled(_update) if x.is_cuda and can_compile(x.device) else _update
        update(x, g, m, v, self._scales(state["step"].item(), group, x.device), group["betas"])

    def _scales(self, t: float, group: dict[str, Any], device: torch.device) -> Tensor:
        """What changes from step to step: as numbers that a kernel reads, so that one does."""
        rate, (beta1, beta2) = group["lr"], group["betas"]
        scales = (1 - rate * group["weight_decay"], rate / (1 - beta1**t), 1 / (1 - beta2**t))
        return torch.tensor([*scales, group["eps"]], dtype=torch.float32, device=device)


def _update(
    x: Tensor, g: Tensor, m: Tensor, v: Tensor, scales_4: Tensor, betas: tuple[float, float]
) -> None:
    """A step of AdamW in place, in fp32; the moments m and v are rounded to their type."""
    kept, rate, unbiased, eps = scales_4
    beta1, beta2 = betas
    m32 = m.float().lerp(g, 1 - beta1)
    v32 = v.float() * beta2 + g * g * (1 - beta2)
    m.copy_(m32)
    v.copy_(v32)
    x.copy_(x * kept - rate * m32 / ((v32 * unbiased).sqrt() + eps))


def begin_moments(optimizer: torch.optim.AdamW, weight: Tensor, updates: int = 0) -> None:
    """Gives a weight moments of zero, in their type and cut as the weight is."""
    dtype, device = weight.dtype, weight.device
    if isinstance(optimizer, NarrowAdamW):
        dtype, device = optimizer.dtype, torch.device("cpu")  # where reading `step` waits for none
    moments = {name: torch.zeros_like(weight, dtype=dtype) for name in MOMENTS}
    step = torch.tensor(float(updates), device=device)
    optimizer.state[weight] = {"step": step, **moments}


def clip_grad_norm(model: nn.Module, max_norm: float, group: Group) -> float:
    """Shrinks the gradients to a global L2 norm of at most `max_norm`; returns what the norm was.

    All ranks read the same number. A norm that is not finite leaves the gradients alone: the caller
    must take no step.
    """
    weights = list(model.parameters())
    grads = [local_part(weight.grad) for weight in weights if weight.grad is not None]
    norms = torch._foreach_norm(grads) if grads else [torch.zeros(())]
    square = torch.stack(list(norms)).double().square().sum().item()
    if any(map(is_cut, weights)):
        square = group.sum([square])[0] / group.copies
    norm = math.sqrt(square)
    if max_norm < norm < math.inf:
        torch._foreach_mul_(grads, max_norm / norm)
    return norm
