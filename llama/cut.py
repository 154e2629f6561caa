"""Tensors that may be cut across ranks: which rows are here, and the whole of them again.

Knows no group: a cut tensor (a DTensor) says itself who holds the rest. A whole one is as good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def full_tensors(state: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Each named tensor whole and on the CPU, one at a time; all ranks must walk it together.

    A tensor that was whole on the CPU already is handed on as it is, not copied.
    """
    for name, tensor in state:
        yield name, full_tensor(tensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """One tensor whole and on the CPU, on all ranks."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if is_cut(tensor) else tensor).cpu()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Every weight, whole and on the CPU, on all ranks (see `full_tensors` for one at a time)."""
    return dict(full_tensors(model.state_dict().items()))


def local_rows(tensor: Tensor) -> slice:
    """Which rows of the whole tensor this rank holds."""
    rows = tensor.shape[0]
    if not is_cut(tensor):
        return slice(0, rows)
    mesh = tensor.device_mesh
    cut = mesh.ndim - 1  # the last dimension cuts; one before it, if there is one, holds copies
    each = -(-rows // mesh.size(cut))
    first = min(each * mesh.get_local_rank(cut), rows)
    return slice(first, min(first + each, rows))


@torch.no_grad()
def set_local_rows(tensor: Tensor, rows: Tensor) -> None:
    """Writes the rows `local_rows(tensor)` of a whole tensor into the part that this rank holds."""
    local_part(tensor).copy_(rows)


def local_part(tensor: Tensor) -> Tensor:
    """The part that this rank holds, to be read or written into."""
    return (tensor.to_local() if is_cut(tensor) else tensor).detach()


def is_cut(tensor: Tensor) -> TypeGuard[Any]:
    """Whether ranks hold the tensor together."""
    return hasattr(tensor, "to_local")  # a DTensor, without importing it


def is_sharded(model: nn.Module) -> TypeGuard[Any]:
    """Whether FSDP2 holds the model's weights (`llama.parallel.shard`)."""
    return hasattr(model, "reshard")  # an FSDPModule, without importing it
