"""AdamW over a model's weights, its moments in fp32 or bf16, and clipping. Knows no loss, no data.

Weights, gradients and moments may be cut across ranks: each rank updates its own part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpo.settings import TrainSettings
from llama.cut import is_cut, local_part
from llama.fused import can_compile, compiled
from llama.parallel import Group

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's m and v
EPS = 1e-8

Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # a rank's, of a weight, its gradient, m and v


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101): in fp32 by torch's kernel.

    Not by `torch.optim`, whose optimizers import torch's compiler when the first of them is made:
    that takes longer than a small training.

    Moments of another type are rounded to the nearest, and the computation stays in fp32. In bf16
    that saves 4 of a weight's 16 bytes. Nothing need be drawn to round it: with β2 = 0.95 a step
    moves v by 5 % of its distance to g², and bf16 tells 0.4 % apart. (With 0.999 v would stick.)
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], betas: tuple[float, float], moments: torch.dtype
    ) -> None:
        """groups: the weights `params`, each with a gradient in every step, and `weight_decay`."""
        self.groups, self.betas, self.moments = groups, betas, moments
        self.weights = [weight for group in groups for weight in group["params"]]
        self.updates = 0
        self.state: dict[Tensor, dict[str, Tensor]] = {}  # each weight's moments, once there is one

    def begin(self, updates: int = 0) -> None:
        """Gives every weight moments of zero, cut as the weight is, as if after some updates."""
        self.updates = updates
        for weight in self.weights:
            zeros = {name: torch.zeros_like(weight, dtype=self.moments) for name in MOMENTS}
            self.state[weight] = zeros

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of all weights at this learning rate."""
        if not self.state:
            self.begin()
        self.updates += 1
        update = self._by_kernel if self.moments == torch.float32 else self._by_hand
        for group in self.groups:
            if parts := [self._parts(weight) for weight in group["params"]]:
                update(parts, rate, group["weight_decay"])

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for weight in self.weights:
            weight.grad = None

    def _parts(self, weight: Tensor) -> Parts:
        assert weight.grad is not None
        m, v = self.state[weight].values()
        return local_part(weight), local_part(weight.grad), local_part(m), local_part(v)

    def _by_kernel(self, parts: Sequence[Parts], rate: float, decay: float) -> None:
        x, g, m, v = map(list, zip(*parts))
        count = torch.full((), float(self.updates), device=x[0].device)
        beta1, beta2 = self.betas
        torch._fused_adamw_(
            x, g, m, v, [], [count] * len(x), lr=rate, beta1=beta1, beta2=beta2,
            weight_decay=decay, eps=EPS, amsgrad=False, maximize=False,
        )  # fmt: skip

    def _by_hand(self, parts: Sequence[Parts], rate: float, decay: float) -> None:
        """With what changes from step to step as numbers that a kernel reads, so that one does."""
        (beta1, beta2), t, device = self.betas, self.updates, parts[0][0].device
        scales = (1 - rate * decay, rate / (1 - beta1**t), 1 / (1 - beta2**t), EPS)
        scales_4 = torch.tensor(scales, dtype=torch.float32, device=device)
        fuses = device.type == "cuda" and can_compile(device)
        update = compiled(_update) if fuses else _update
        for each in parts:
            update(*each, scales_4, self.betas)


def make_optimizer(model: nn.Module, settings: TrainSettings, betas: tuple[float, float]) -> AdamW:
    """AdamW over what is not frozen, as the settings want it; only matrices decay."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in weights if weight.ndim > 1]
    gains = [weight for weight in weights if weight.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return AdamW(groups, betas, getattr(torch, settings.moments))


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
