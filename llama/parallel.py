"""Ranks: who is here, what they tell each other, and a model cut across them.

With `llama/team.py` the only place that knows `torch.distributed`. Knows no text, no files and no
loss. Everything works with no process group too: then there is one rank, and it is rank 0.

```
  a weight of 5 rows (shard)         rank 0 holds 0 1 2 · rank 1 holds 3 4
  the same, Layout(shard="machine")  machine A: rank 0 holds 0 1 2 · rank 1 holds 3 4
                                     machine B: rank 2 holds 0 1 2 · rank 3 holds 3 4
  5 rows of data (Group.slice)       rank 0 takes 0 2 4 · rank 1 takes 1 3, so sorted work is even
```
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from llama.container import fit_threads
from llama.cut import full_state, full_tensor, full_tensors, local_part, local_rows, set_local_rows
from llama.layout import USUAL, Layout

__all__ = [
    "Group", "Layout", "PeerLost", "current", "full_state", "full_tensor", "full_tensors",
    "local_part", "local_rows", "set_local_rows", "shard", "start", "sync_copies",
]  # fmt: skip

Row = TypeVar("Row")

_NOBODY = object()  # fills the shorter ranks' turns when rows are merged
_joined: Group | None = None  # a process is in one group at most, as in torch.distributed
_meshes: dict[tuple[int, ...], Any] = {}  # one of a shape: each has communicators of its own


class PeerLost(RuntimeError):
    """Another rank died or hung. The message names this rank, the phase, and what to do."""


@dataclass(frozen=True)
class Group:
    """The ranks of one run, as one of them sees it.

    Every method but `slice` and `stop` is to be called by all ranks.
    """

    rank: int
    world_size: int
    device: torch.device
    timeout_s: float
    control: dist.ProcessGroup | None = None  # gloo, whatever carries the gradients; None: alone
    machine_ranks: int = 1  # ranks on each machine
    layout: Layout = USUAL

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this is the first rank of its machine: it tells what went wrong there."""
        return self.rank % self.machine_ranks == 0

    @property
    def copies(self) -> int:
        """Whole copies of the weights that the ranks hold between them in training."""
        hybrid = self.layout.shard == "machine"
        return self.world_size // self.machine_ranks if hybrid else 1

    @property
    def home(self) -> torch.device:
        """Where a rank's part of the weights lies between two uses."""
        return torch.device("cpu") if self.layout.offload else self.device

    def slice(self, rows: Sequence[Row]) -> list[Row]:
        """This rank's part: every `world_size`-th row. `gather_rows(slice(rows)) == rows`."""
        return list(rows[self.rank :: self.world_size])

    def gather_rows(self, rows: Sequence[Row]) -> list[Row]:
        """All ranks' rows, on all ranks, in turns: rank 0's, rank 1's, … Undoes `slice`."""
        if self.control is None:
            return list(rows)
        self.barrier()  # ranks come here minutes apart: wait where it is said who is missing
        parts: list[Sequence[Row]] = [()] * self.world_size
        with self.phase("gathering rows"):
            dist.all_gather_object(parts, rows, group=self.control)
        turns = chain.from_iterable(zip_longest(*parts, fillvalue=_NOBODY))
        return [row for row in turns if row is not _NOBODY]  # type: ignore[misc]

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.control is None:
            return value
        box = [value]
        with self.phase("hearing rank 0"):
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in float64; all ranks read the same numbers."""
        if self.control is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.phase("summing over ranks"):
            dist.all_reduce(total, group=self.control)
        return total.tolist()

    def barrier(self) -> None:
        """Waits for all ranks.

        Raises PeerLost after the time-out; on rank 0 it names the ranks that are missing.
        """
        if self.control is not None:
            with self.phase("waiting for all ranks"):
                limit = timedelta(seconds=self.timeout_s)
                dist.monitored_barrier(self.control, timeout=limit, wait_all_ranks=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names what is going on: a peer that is lost meanwhile raises PeerLost, which says it."""
        try:
            yield
        except PeerLost as lost:
            raise PeerLost(f"{name}: {lost}") from lost.__cause__
        except RuntimeError as error:
            if self.world_size == 1 or not _speaks_of_a_peer(error):
                raise
            raise PeerLost(
                f"{name}: rank {self.rank} of {self.world_size} lost touch with the others. Their "
                f"output has the cause; the same command resumes. ({_first_line(error)})"
            ) from error

    def stop(self) -> None:
        """Leaves the group; to be called at the end of a good run."""
        global _joined
        _joined = None
        _meshes.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def _speaks_of_a_peer(error: RuntimeError) -> bool:
    # gloo raises bare RuntimeErrors: its words are all there is to tell them from a wrong shape
    words = ("gloo", "monitoredBarrier", "pair closure", "Connection", "Timed out", "NCCL")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def start(timeout_s: float = 1800.0, layout: Layout = USUAL) -> Group:
    """Joins the ranks that `torchrun` started; without torchrun, a group of one.

    Each rank takes the card of its local number, or the CPU where there is no CUDA, and no more
    threads than its container allows. `timeout_s`: how long a rank waits for another in any
    collective. Raises ValueError for a launch that cannot work, RuntimeError if the ranks do not
    meet.
    """
    world_size, local_rank = _environ("WORLD_SIZE", 1, 1), _environ("LOCAL_RANK", 0, 0)
    machine_ranks = _environ("LOCAL_WORLD_SIZE", world_size, 1)
    fit_threads()
    device = _device(local_rank)
    if world_size == 1:
        return Group(0, 1, device, timeout_s, layout=layout)
    if "RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {world_size} but RANK is not set: start several ranks with torchrun"
        )
    if world_size % machine_ranks:
        raise ValueError(
            f"{world_size} ranks, {machine_ranks} of them on this machine: start equally many on "
            "each (--nproc-per-node)"
        )
    limit = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(_backend(device, layout), timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    except (dist.DistError, RuntimeError) as error:
        rank, host, port = map(os.environ.get, ("RANK", "MASTER_ADDR", "MASTER_PORT"))
        raise RuntimeError(
            f"rank {rank} of {world_size} could not meet the others at {host}:{port} "
            f"within {timeout_s:g} s"
        ) from error
    global _joined
    _joined = Group(dist.get_rank(), world_size, device, timeout_s, control, machine_ranks, layout)
    return _joined


def current() -> Group:
    """The group that `start` joined; a group of one on the CPU where there is none."""
    return _joined or Group(0, 1, torch.device("cpu"), 0.0)


def _environ(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"the environment's {name} must be a whole number from {least} on, found {text!r}"
        )
    return int(text)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    cards = torch.cuda.device_count()
    if local_rank >= cards:
        raise ValueError(
            f"more than {local_rank} ranks on a machine of {cards} GPUs: --nproc-per-node {cards}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _backend(device: torch.device, layout: Layout) -> str:
    # weights that wait in the machine's memory are gathered from there, which NCCL cannot do
    return {"cpu": "gloo"}.get(device.type, "cpu:gloo,cuda:nccl" if layout.offload else "nccl")


def shard(model: nn.Module, group: Group, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Moves `model` to the group's device and cuts it by FSDP2: each of its `layers`, the rest.

    Weights stay stored in their own type (fp32 masters); the computation sees them in `dtype`;
    gradients are reduced in fp32 and *summed* over ranks, never averaged: whoever makes the loss
    divides it by the global count. One rank computing in the type that it stores is left whole,
    unless its weights are to wait elsewhere.
    """
    if group.world_size == 1:
        weight = next(model.parameters())
        if dtype == weight.dtype and not group.layout.offload:
            return model if weight.is_meta else model.to(group.device)
        _meet_alone(group)
    from torch.distributed.fsdp import (  # here, for few runs need what takes so long to import
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the rotary tables must stay fp32
    )
    waiting = CPUOffloadPolicy(pin_memory=group.device.type == "cuda")
    how = {"mesh": _mesh(group), "mp_policy": policy}
    how["offload_policy"] = waiting if group.layout.offload else OffloadPolicy()
    model.computed_in = dtype  # type: ignore[assignment]
    for block in model.layers:  # type: ignore[union-attr]
        fully_shard(block, **how)
    fully_shard(model, **how)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            if group.world_size > 1:  # who is alone would divide by 1, gradient by gradient
                module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return model


def sync_copies(model: Any, group: Group, now: bool) -> None:
    """Whether the next backward pass adds the gradients over the copies; else they pile up in each.

    Between machines the wire is slow: once a step is enough.
    """
    if group.copies > 1:
        model.set_requires_all_reduce(now)


def _mesh(group: Group) -> Any:
    """The ranks as [ranks], or as [copies, ranks a copy]: the last dimension cuts the weights."""
    from torch.distributed.device_mesh import init_device_mesh

    each = group.world_size // group.copies
    shape = (each,) if group.copies == 1 else (group.copies, each)
    if shape not in _meshes:
        names = ("copy", "cut")[-len(shape) :]
        _meshes[shape] = init_device_mesh(group.device.type, shape, mesh_dim_names=names)
    return _meshes[shape]


def _meet_alone(group: Group) -> None:
    # FSDP2 keeps fp32 masters beside a bf16 computation on one rank too, but not without a group.
    if not dist.is_initialized():
        backend = _backend(group.device, group.layout)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
