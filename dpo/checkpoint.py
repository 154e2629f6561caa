"""A training run, frozen between two steps, in one safetensors file.

It holds the weights that learn, Adam's moments and what else it takes to go on to the same bytes,
and is replaced whole or not at all. Knows no loss and no data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from dpo.optimizer import MOMENTS, begin_moments
from llama.cut import full_tensors, local_rows, set_local_rows
from llama.files import replacing
from llama.header import DTYPES, read_header
from llama.model import Llama
from llama.parallel import Group

FILE = "training.safetensors"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def forget(directory: Path, group: Group) -> None:
    """Removes a run's frozen state, once its weights are saved elsewhere."""
    if group.is_main:
        (directory / FILE).unlink(missing_ok=True)


def save_training(
    directory: Path, model: Llama, optimizer: torch.optim.AdamW, state: dict[str, Any], group: Group
) -> None:
    """Writes FILE. All ranks call it; rank 0 writes, tensor by tensor, so that none holds them all.

    `state` is plain JSON. If rank 0 cannot write, all ranks raise OSError and the earlier file
    stands.
    """
    state = state | {"updates": _updates(optimizer)}
    failure = None
    tensors = full_tensors(_tensors(model, optimizer))
    try:
        with replacing(directory / FILE) if group.is_main else nullcontext() as draft:
            if draft is not None:
                with draft.open("wb") as stream:
                    _write_header(stream, list(_tensors(model, optimizer)), state)
                    for _, tensor in tensors:
                        stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        failure = f"{directory / FILE} could not be written: {error}"
    for _ in tensors:  # the other ranks only help to gather; after a failure rank 0 does too
        pass
    failure = group.broadcast_object(failure)
    if failure is not None:
        raise OSError(failure)


def read_state(directory: Path) -> dict[str, Any] | None:
    """What `save_training` was given as `state`, and `updates`; None if no run is frozen here.

    Raises ValueError, naming the file, if it is damaged.
    """
    file = directory / FILE
    if not file.exists():
        return None
    read_header(file)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata() or {}
    try:
        state: dict[str, Any] = json.loads(metadata["state"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file} is no frozen training run ({error!r}): remove it") from None
    return state


def load_training(
    directory: Path, model: Llama, optimizer: torch.optim.AdamW, updates: int
) -> None:
    """Puts weights and moments back, each rank reading its own rows.

    Raises ValueError if they are another model's.
    """
    file = directory / FILE
    _make_moments(optimizer, updates)
    wanted = dict(_tensors(model, optimizer))
    found = read_header(file)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in wanted.items()}
    stored_shapes = {name: (entry.shape, entry.dtype) for name, entry in found.items()}
    if shapes != stored_shapes:
        odd = min(set(shapes.items()) ^ set(stored_shapes.items()), key=str)[0]
        raise ValueError(f"{file} is of another model (see tensor {odd!r}): remove it")
    with safe_open(file, "pt") as stored:
        for name, tensor in wanted.items():
            set_local_rows(tensor, stored.get_slice(name)[local_rows(tensor)])


def _tensors(model: Llama, optimizer: torch.optim.AdamW) -> Iterator[tuple[str, Tensor]]:
    """All that changes in a step, by name; before the first step there are no moments."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        yield f"weight.{name}", weight
        for moment in MOMENTS:
            if moment in optimizer.state[weight]:
                yield f"{moment}.{name}", optimizer.state[weight][moment]


def _updates(optimizer: torch.optim.AdamW) -> int:
    """How many steps Adam has taken: fewer than the run's, if some were skipped."""
    counts = {int(state["step"]) for state in optimizer.state.values() if state}
    assert len(counts) <= 1, counts
    return counts.pop() if counts else 0


def _make_moments(optimizer: torch.optim.AdamW, updates: int) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights if updates else []:
        begin_moments(optimizer, weight, updates)


def _write_header(
    stream: BinaryIO, tensors: list[tuple[str, Tensor]], state: dict[str, Any]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"state": json.dumps(state)}}
    end = 0
    for name, tensor in tensors:
        dtype, shape = _NAMES[tensor.dtype], list(tensor.shape)
        first, end = end, end + math.prod(shape) * tensor.dtype.itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    stream.write(len(text).to_bytes(8, "little") + text)
