"""What a training run may choose, and its learning rate at each step. Knows no model, no data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama.lora import TARGETS, Lora

LOSSES = ("dpo", "cdpo", "robust", "ipo", "hinge", "dpo_norm", "simpo")  # of `dpo.losses`
FLIPPING = ("cdpo", "robust")  # they reckon with wrong labels
RECOMPUTE = ("none", "selective", "full")
MOMENT_TYPES = ("float32", "bfloat16")
# on resume: what the machine bears; it changes no step but for rounding
MAY_CHANGE = ("micro_tokens", "recompute", "compile", "save_every")
POSITIVE = (
    "learning_rate", "epochs", "batch_size", "clip", "micro_tokens", "beta", "save_every",
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `train_sft` and `train_dpo`; ValueError, with its name, for an impossible one."""

    learning_rate: float
    min_learning_rate: float = 0.0
    epochs: float = 1.0
    batch_size: int = 16  # rows (SFT) or pairs (DPO) in an optimizer step, over all ranks
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0  # largest global norm of the gradient
    dropout: float = 0.1
    micro_tokens: int = 8192  # in one forward pass, padding included
    recompute: str = "none"  # in the backward pass: none, selective, full; ever slower and smaller
    compile: bool = False  # each block by torch.compile: minutes at first, then faster on a GPU
    moments: str = "float32"  # what Adam keeps; bfloat16 saves 4 of 16 bytes a weight
    lora_rank: int = 0  # of the adapters that learn in place of the weights; 0: none, all learn
    lora_alpha: float = 16.0  # what they add is multiplied by alpha / rank
    lora_targets: tuple[str, ...] = TARGETS  # the matrices of each block that have them
    loss: str = "dpo"  # the preference loss, one of LOSSES
    beta: float = 0.1  # its inverse temperature; dpo_norm and simpo, per token, want 2 or more
    flipped: float = 0.0  # cdpo, robust: the share of pairs that may be the wrong way round
    gamma: float = 0.0  # simpo: by how much the chosen reward must be ahead
    nll_weight: float = 0.0  # DPO: weight of the chosen responses' loss per token
    replay_weight: float = 0.0  # DPO: weight of the replayed rows' loss per token
    max_steps: int | None = None
    save_every: int = 200  # steps

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)!r}")
        for name, choices in (("recompute", RECOMPUTE), ("moments", MOMENT_TYPES)):
            if getattr(self, name) not in choices:
                listed, found = ", ".join(choices), getattr(self, name)
                raise ValueError(f"{name} must be one of {listed}, found {found!r}")
        for name in ("warmup_steps", "weight_decay", "gamma", "nll_weight", "replay_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)!r}")
        self._check_loss()
        self._check_lora()
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            found = self.min_learning_rate
            raise ValueError(
                f"min_learning_rate must lie between 0 and learning_rate, found {found!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {self.dropout!r}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, found {self.max_steps!r}")

    def _check_loss(self) -> None:
        """A parameter of another loss would be silently without effect: it is refused."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, found {self.loss!r}")
        if self.loss in FLIPPING and not 0 < self.flipped < 0.5:
            found = f"with loss {self.loss}, found {self.flipped!r}"
            raise ValueError(f"flipped must lie between 0 and 0.5 {found}")
        if self.loss not in FLIPPING and self.flipped != 0:
            raise ValueError(f"flipped means nothing with loss {self.loss}; leave it at 0")
        if self.loss != "simpo" and self.gamma != 0:
            raise ValueError(f"gamma means nothing with loss {self.loss}; leave it at 0")

    def _check_lora(self) -> None:
        for name in ("lora_alpha", "lora_targets"):
            if not self.lora_rank and getattr(self, name) != getattr(TrainSettings, name):
                raise ValueError(f"{name} means nothing with lora_rank 0; leave it out")
        _ = self.lora  # refuses what there is not

    @property
    def lora(self) -> Lora | None:
        """What `llama.load_sharded` is told."""
        if self.lora_rank == 0:
            return None
        return Lora(self.lora_rank, self.lora_alpha, self.lora_targets)

    def steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps in the run."""
        whole = max(1, round(self.epochs * steps_per_epoch))
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of step 0 … steps-1.

        Up in a straight line over the warm-up, then half a cosine down, which would reach
        `min_learning_rate` one step after the last.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        height = (1 + math.cos(math.pi * done)) / 2
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * height
