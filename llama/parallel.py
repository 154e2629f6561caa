"""Ranks: who is here, what they tell each other, and a model cut across them.

With `dpo/trainer.py` the only place that knows `torch.distributed`. Knows no text, no files and no
loss. Everything works with no process group too: then there is one rank, and it is rank 0.

```
  a weight of 5 rows (shard)         rank 0 holds 0 1 2 · rank 1 holds 3 4
  5 rows of data (Group.slice)       rank 0 takes 0 2 4 · rank 1 takes 1 3, so sorted work is even
```
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Row = TypeVar("Row")

_NOBODY = object()  # fills the shorter ranks' turns when rows are merged
_joined: Group | None = None  # a process is in one group at most, as in torch.distributed


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

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

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
        if dist.is_initialized():
            dist.destroy_process_group()


def _speaks_of_a_peer(error: RuntimeError) -> bool:
    # gloo raises bare RuntimeErrors: its words are all there is to tell them from a wrong shape
    words = ("gloo", "monitoredBarrier", "pair closure", "Connection", "Timed out", "NCCL")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def start(timeout_s: float = 1800.0) -> Group:
    """Joins the ranks that `torchrun` started; without torchrun, a group of one.

    Each rank takes the card of its local number, or the CPU where there is no CUDA. `timeout_s`:
    how long a rank waits for another in any collective. Raises ValueError for a launch that cannot
    work, RuntimeError if the ranks do not meet.
    """
    world_size, local_rank = _environ("WORLD_SIZE", 1), _environ("LOCAL_RANK", 0)
    device = _device(local_rank)
    if world_size == 1:
        return Group(0, 1, device, timeout_s)
    if "RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {world_size} but RANK is not set: start several ranks with torchrun"
        )
    limit = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=limit)
        control = dist.new_group(backend="gloo", timeout=limit)
    except (dist.DistError, RuntimeError) as error:
        rank, host, port = map(os.environ.get, ("RANK", "MASTER_ADDR", "MASTER_PORT"))
        raise RuntimeError(
            f"rank {rank} of {world_size} could not meet the others at {host}:{port} "
            f"within {timeout_s:g} s"
        ) from error
    global _joined
    _joined = Group(dist.get_rank(), world_size, device, timeout_s, control)
    return _joined


def current() -> Group:
    """The group that `start` joined; a group of one on the CPU where there is none."""
    return _joined or Group(0, 1, torch.device("cpu"), 0.0)


def _environ(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} must be a whole number, found {text!r}")
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


def shard(model: nn.Module, group: Group, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Moves `model` to the group's device and cuts it by FSDP2: each of its `layers`, the rest.

    Weights stay stored in their own type (fp32 masters); the computation sees them in `dtype`;
    gradients are reduced in fp32 and *summed* over ranks, never averaged: whoever makes the loss
    divides it by the global count. One rank computing in the type that it stores is left whole.
    """
    stored = next(model.parameters()).dtype
    if group.world_size == 1:
        if dtype == stored:
            return model if next(model.parameters()).is_meta else model.to(group.device)
        _meet_alone(group.device)
    # Here, not above: importing these takes longer than all the rest, and few runs need them.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(group.device.type, (group.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the rotary tables must stay fp32
    )
    for block in model.layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return model


def _meet_alone(device: torch.device) -> None:
    # FSDP2 keeps fp32 masters beside a bf16 computation on one rank too, but not without a group.
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def clip_grad_norm(model: nn.Module, max_norm: float, group: Group) -> float:
    """Shrinks the gradients to a global L2 norm of at most `max_norm`; returns what the norm was.

    All ranks read the same number. A norm that is not finite leaves the gradients alone: the caller
    must take no step.
    """
    grads = [_local(weight.grad) for weight in model.parameters() if weight.grad is not None]
    norms = torch._foreach_norm(grads) if grads else [torch.zeros(())]
    square = torch.stack(list(norms)).double().square().sum().item()
    norm = math.sqrt(group.sum([square])[0] if _is_sharded(model) else square)
    if max_norm < norm < math.inf:
        torch._foreach_mul_(grads, max_norm / norm)
    return norm


def full_tensors(state: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Each named tensor whole and on the CPU, one at a time; all ranks must walk it together.

    A tensor that was whole on the CPU already is handed on as it is, not copied.
    """
    for name, tensor in state:
        yield name, full_tensor(tensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """One tensor whole and on the CPU, on all ranks."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if _is_cut(tensor) else tensor).cpu()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Every weight, whole and on the CPU, on all ranks (see `full_tensors` for one at a time)."""
    return dict(full_tensors(model.state_dict().items()))


def local_rows(tensor: Tensor) -> slice:
    """Which rows of the whole tensor this rank holds."""
    rows = tensor.shape[0]
    if not _is_cut(tensor):
        return slice(0, rows)
    mesh = tensor.device_mesh
    each = -(-rows // mesh.size())
    first = min(each * mesh.get_local_rank(), rows)
    return slice(first, min(first + each, rows))


@torch.no_grad()
def set_local_rows(tensor: Tensor, rows: Tensor) -> None:
    """Writes the rows `local_rows(tensor)` of a whole tensor into the part that this rank holds."""
    _local(tensor).copy_(rows)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, to be written into."""
    return _local(tensor).detach()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if _is_cut(tensor) else tensor


def _is_cut(tensor: Tensor) -> TypeGuard[Any]:
    return hasattr(tensor, "to_local")  # a DTensor, without importing it


def _is_sharded(model: nn.Module) -> bool:
    return any(_is_cut(weight) for weight in model.parameters())
