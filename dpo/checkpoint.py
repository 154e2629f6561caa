"""A training run, frozen between two steps, in one safetensors file; the last two are kept.

A file holds the weights that learn, Adam's moments and what else it takes to go on to the same
bytes. It is there whole or not at all, and any flipped bit of it shows. Knows no loss and no data.

```
  8 bytes: length of the header │ {"__metadata__": {"crc32": "········", "state": … │ tensors
  ├───────── counted ─────────────────────────────────────┤          ├──── counted ────────────┤
```
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from dpo.optimizer import MOMENTS, AdamW
from llama.cut import full_tensors, local_rows, set_local_rows
from llama.files import replacing
from llama.header import DTYPES, read_header
from llama.model import Llama
from llama.parallel import Group

FILES = ("training.0.safetensors", "training.1.safetensors")  # they take turns

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_OPENING = '{"__metadata__": {"crc32": "'
_CRC = slice(8 + len(_OPENING), 8 + len(_OPENING) + 8)  # the bytes that tell of all others
_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True)
class Frozen:
    """A file to go on from. `state`: what `save_training` was given, and `updates`."""

    file: Path
    state: dict[str, Any]
    fault: str | None  # what is wrong with a later one, that was passed over


def forget(directory: Path, group: Group) -> None:
    """Removes a run's frozen states, once its weights are saved elsewhere."""
    for name in FILES if group.is_main else ():
        (directory / name).unlink(missing_ok=True)


def save_training(
    file: Path, model: Llama, optimizer: AdamW, state: dict[str, Any], group: Group
) -> None:
    """Writes one of FILES. All ranks call it; rank 0 writes, tensor by tensor, so that none holds
    them all.

    `state` is plain JSON with a `progress` that tells its `step`. If rank 0 cannot write, all ranks
    raise OSError and the other one of FILES stands.
    """
    state = state | {"updates": optimizer.updates}  # fewer than steps, if some were skipped
    failure = None
    tensors = full_tensors(_tensors(model, optimizer))
    try:
        with replacing(file) if group.is_main else nullcontext() as draft:
            if draft is not None:
                file.unlink(missing_ok=True)  # else the disk would have to hold three for a while
                with draft.open("wb") as stream:
                    crc = _write_header(stream, list(_tensors(model, optimizer)), state)
                    for _, tensor in tensors:
                        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
                        crc = zlib.crc32(data, crc)
                        stream.write(data)
                    stream.seek(_CRC.start)
                    stream.write(b"%08x" % crc)
    except OSError as error:
        failure = f"{file} could not be written: {error}"
    for _ in tensors:  # the other ranks only help to gather; after a failure rank 0 does too
        pass
    failure = group.broadcast_object(failure)
    if failure is not None:
        raise OSError(failure)


def find_training(directory: Path, group: Group) -> Frozen | None:
    """The latest frozen run that is whole; None if none lies there. Rank 0 reads, all are told.

    Raises ValueError, naming the files, if there are only damaged ones.
    """
    found, faults = _look(directory) if group.is_main else (None, [])
    found, faults = group.broadcast_object((found, faults))
    if faults and found is None:
        raise ValueError("; ".join(faults))
    return found  # type: ignore[no-any-return]


def _look(directory: Path) -> tuple[Frozen | None, list[str]]:
    states, faults = [], []
    for file in (directory / name for name in FILES):
        try:
            if file.exists():
                states.append((read_state(file), file))
        except (ValueError, OSError) as error:
            faults.append(str(error))
    for state, file in sorted(states, key=lambda found: found[0]["progress"]["step"])[::-1]:
        try:
            check_bytes(file)
            return Frozen(file, state, "; ".join(faults) or None), faults
        except (ValueError, OSError) as error:
            faults.append(str(error))
    return None, faults


def read_state(file: Path) -> dict[str, Any]:
    """What `save_training` was given as `state`, and `updates`, not yet known to be whole.

    Raises ValueError, naming the file, if there is none.
    """
    read_header(file)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata() or {}
    try:
        state: dict[str, Any] = json.loads(metadata["state"])
        if type(state["progress"]["step"]) is not int:
            raise ValueError("its step is no number")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no frozen training run ({error!r}): remove it") from None
    return state


def check_bytes(file: Path) -> None:
    """Raises ValueError, naming the file, if a byte is not as it was written."""
    with file.open("rb") as stream:
        crc, written = zlib.crc32(stream.read(_CRC.start)), stream.read(8)
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    if written != b"%08x" % crc:
        was = written.decode(errors="replace")
        raise ValueError(f"{file} is damaged: its CRC-32 was {was!r}, is {crc:08x}: remove it")


def load_training(file: Path, model: Llama, optimizer: AdamW, updates: int) -> None:
    """Puts weights and moments back, each rank reading its own rows.

    Raises ValueError if they are another model's.
    """
    if updates:
        optimizer.begin(updates)
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


def _tensors(model: Llama, optimizer: AdamW) -> Iterator[tuple[str, Tensor]]:
    """All that changes in a step, by name; before the first step there are no moments."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        yield f"weight.{name}", weight
        for moment in MOMENTS if optimizer.state else ():
            yield f"{moment}.{name}", optimizer.state[weight][moment]


def _write_header(
    stream: BinaryIO, tensors: list[tuple[str, Tensor]], state: dict[str, Any]
) -> int:
    """Leaves room for the CRC; returns that of all other bytes so far."""
    header: dict[str, Any] = {"__metadata__": {"crc32": "0" * 8, "state": json.dumps(state)}}
    end = 0
    for name, tensor in tensors:
        dtype, shape = _NAMES[tensor.dtype], list(tensor.shape)
        first, end = end, end + math.prod(shape) * tensor.dtype.itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    assert text.startswith(_OPENING.encode()), text[:80]
    begin = len(text).to_bytes(8, "little") + text
    stream.write(begin)
    return zlib.crc32(begin[_CRC.stop :], zlib.crc32(begin[: _CRC.start]))
