"""LoRA (Hu et al. 2021, arXiv 2106.09685): small matrices that learn beside frozen weights.

```
  y = W x  +  alpha/rank · B (A x)        W [out, in] frozen, in the type of the computation
                                          A [rank, in], B [out, rank] learn, in fp32; B begins at 0
```
Put onto a model before it is cut across ranks; the model never mentions it. Knows no loss and no
optimizer.
"""

# C inputs of a matrix, F outputs, R rank

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.config import LlamaConfig
from llama.cut import full_tensor, local_part, local_rows, set_local_rows

TARGETS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")  # a block's matrices
ADAPTERS = ("lora_a", "lora_b")


@dataclass(frozen=True)
class Lora:
    """What may be chosen; ValueError for what cannot be."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora_rank must be at least 1, found {self.rank!r}")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"lora_alpha must be above 0, found {self.alpha!r}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"lora_targets must be some of {', '.join(TARGETS)}, each once, "
                f"found {', '.join(self.targets) or 'none'}"
            )

    def shapes(self, config: LlamaConfig) -> Iterator[tuple[str, int, int]]:
        """Name, outputs and inputs of each matrix in a block that is adapted.

        Raises ValueError for a rank that a matrix cannot have.
        """
        kv_dim = config.n_kv_heads * config.head_dim
        wide = {"wk": (kv_dim, config.dim), "wv": (kv_dim, config.dim)}
        wide |= dict.fromkeys(("wq", "wo"), (config.dim, config.dim))
        wide |= dict.fromkeys(("w1", "w3"), (config.ffn_dim, config.dim))
        wide |= {"w2": (config.dim, config.ffn_dim)}
        for name in self.targets:
            if self.rank > min(wide[name]):
                shape = " × ".join(map(str, wide[name]))
                raise ValueError(
                    f"lora_rank {self.rank} is more than {name} of {shape} can have: "
                    f"at most {min(wide[name])}"
                )
            yield name, *wide[name]

    def block_parameter_count(self, config: LlamaConfig) -> int:
        """Numbers that learn in one block."""
        return sum(self.rank * (out + into) for _, out, into in self.shapes(config))


class LoraLinear(nn.Linear):
    """A matrix with its adapters; the frozen one stays the parameter that it was."""

    def __init__(self, linear: nn.Linear, lora: Lora) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.lora = lora
        fresh = partial(torch.zeros, dtype=torch.float32, device=linear.weight.device)
        self.lora_a = nn.Parameter(fresh(lora.rank, self.in_features))
        self.lora_b = nn.Parameter(fresh(self.out_features, lora.rank))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """By `addmm`, so that nothing of the sum is kept for the backward pass."""
        a_RC, b_FR = self.lora_a.to(x_BTC.dtype), self.lora_b.to(x_BTC.dtype)
        frozen_NF = F.linear(x_BTC, self.weight).flatten(0, -2)
        low_NR = F.linear(x_BTC, a_RC).flatten(0, -2)
        scale = self.lora.alpha / self.lora.rank
        y_NF = torch.addmm(frozen_NF, low_NR, b_FR.t(), alpha=scale)
        return y_NF.view(*x_BTC.shape[:-1], self.out_features)

    def added(self, a_RC: Tensor, b_FR: Tensor) -> Tensor:
        """What these rows of B add to the same rows of the weight."""
        return (self.lora.alpha / self.lora.rank) * (b_FR.float() @ a_RC.float())


def attach(model: nn.Module, lora: Lora) -> None:
    """Freezes a model and gives its blocks adapters, which at first do nothing.

    Before it is cut across ranks. Raises ValueError for a rank that a matrix cannot have.
    """
    assert chosen(model) is None, "this model has adapters already"
    names = [name for name, _, _ in lora.shapes(model.config)]  # type: ignore[arg-type]
    model.requires_grad_(False)
    for block in model.layers:  # type: ignore[union-attr]
        for name in names:
            half = block.attention if hasattr(block.attention, name) else block.ffn
            setattr(half, name, LoraLinear(getattr(half, name), lora))


def chosen(model: nn.Module) -> Lora | None:
    """How a model is adapted; None: it is a plain one."""
    return next((linear.lora for _, linear in _adapted(model)), None)


def begin(model: nn.Module, seed: str) -> None:
    """Draws the adapters anew: A normal with deviation 1/sqrt(inputs), B zero, so that the model
    still is what it was. However many ranks hold them, they are the same.
    """
    for name, linear in _adapted(model):
        bits = hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(bits, "little"))
        a_RC = torch.randn(linear.lora_a.shape, generator=generator)
        rows = a_RC[local_rows(linear.lora_a)] * linear.in_features**-0.5
        set_local_rows(linear.lora_a, rows)
        local_part(linear.lora_b).zero_()


def silence(model: nn.Module) -> None:
    """Sets the adapters to zero: the model is what its frozen weights are."""
    for _, linear in _adapted(model):
        local_part(linear.lora_a).zero_()
        local_part(linear.lora_b).zero_()


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Adds what the adapters learnt to the frozen weights, in fp32, rounded once; silences them."""
    for _, linear in _adapted(model):
        a_RC = full_tensor(linear.lora_a).to(linear.lora_a.device)
        weight_FC, b_FR = local_part(linear.weight), local_part(linear.lora_b)
        if b_FR.any():  # else not even the sign of a zero may change
            weight_FC.copy_(weight_FC.float() + linear.added(a_RC, b_FR))
    silence(model)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that a plain model has, by name; what adapters add is not in them."""
    state = model.state_dict()
    return {name: state[name] for name in state if not name.endswith(ADAPTERS)}


def added_to(model: nn.Module) -> dict[str, LoraLinear]:
    """The weights that adapters add to, by name."""
    return {f"{name}.weight": linear for name, linear in _adapted(model)}


@torch.no_grad()
def merged(weight: Tensor, linear: LoraLinear | None) -> Tensor:
    """A weight whole and on the CPU, with what its adapters add, if it has any; all ranks call it.

    As `fold` would leave it, but for rounding.
    """
    whole_FC = full_tensor(weight)
    if linear is None:
        return whole_FC
    a_RC, b_FR = full_tensor(linear.lora_a), full_tensor(linear.lora_b)
    if not b_FR.any():
        return whole_FC
    return (whole_FC.float() + linear.added(a_RC, b_FR)).to(whole_FC.dtype)


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)
    )
