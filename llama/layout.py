"""How training lays a model out over the ranks of a run, and that in words. Moves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from llama.parallel import Group

SHARDS = ("all", "machine")


@dataclass(frozen=True)
class Layout:
    """What may be chosen; ValueError, with its name, for what cannot be."""

    shard: str = "all"  # one copy of the weights cut across all ranks, or one on each machine
    offload: bool = False  # weights, gradients and moments wait in the machine's memory

    def __post_init__(self) -> None:
        if self.shard not in SHARDS:
            raise ValueError(f"shard must be {' or '.join(SHARDS)}, found {self.shard!r}")


USUAL = Layout()


def describe(group: Group, parameters: int, dtype: torch.dtype) -> str:
    """Who trains a model of so many parameters, and how it is cut, in words for one line."""
    ranks, machines = group.world_size, group.world_size // group.machine_ranks
    each = ranks // group.copies
    who = f"{ranks} rank{'s' * (ranks > 1)}" + (f" on {machines} machines" if machines > 1 else "")
    cut = "whole" if each == 1 else f"cut across {each} ranks"
    copies = f"{group.copies} copies, each " if group.copies > 1 else ""
    waits = ", waiting in the machine's memory" if group.layout.offload else ""
    kind = str(dtype).removeprefix("torch.")
    return (
        f"{parameters:,} parameters on {who} ({group.device.type}), {copies}{cut}{waits}; "
        f"computed in {kind}"
    )
