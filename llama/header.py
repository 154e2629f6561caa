"""What a safetensors file says it holds, checked before anything is allocated.

Knows the format (8 bytes of length, a JSON header, the data), nothing of models.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its place there is known, its bytes are not read."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # its first byte in the file


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name.

    Raises ValueError, naming the file and where possible the tensor, for a header that is too long
    or no JSON, a type other than F32, F16 and BF16, a size that is not its shape's, and data that
    overlaps, leaves gaps or ends elsewhere than the file.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    header, data_bytes = _read_json(file)
    data_start = file.stat().st_size - data_bytes
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError(f"{file}: its metadata is no table of texts")
    entries, spans = {}, []
    for name, fields in header.items():
        try:
            dtype, shape, span = _fields(fields)
        except ValueError as error:
            raise ValueError(f"{file}: tensor {name!r}: {error}") from None
        entries[name] = Entry(file, name, dtype, shape, data_start + span[0])
        spans.append((span, name))
    end = 0
    for (first, last), name in sorted(spans):
        if first != end:
            raise ValueError(
                f"{file}: tensor {name!r} begins at byte {first} of the data, expected {end}"
            )
        end = last
    if end != data_bytes:
        raise ValueError(
            f"{file} holds {data_bytes} bytes of data, but its header describes {end}: damaged"
        )
    return entries


def _read_json(file: Path) -> tuple[dict[str, Any], int]:
    """(the header, how many bytes follow it)"""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        after = file.stat().st_size - 8 - length
        if after < 0 or length > LONGEST_HEADER:
            raise ValueError(
                f"{file} is no safetensors file: it announces a header of {length} bytes"
            )
        text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its header cannot be read: {error}") from None
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise ValueError(f"{file}: its header is no JSON object")
    return header, after


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands there twice")
    return names


def _fields(fields: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    """(type, shape, (first, last) byte) of one entry."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected exactly dtype, shape and data_offsets")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in DTYPES:
        raise ValueError(f"type {fields['dtype']!r}; expected one of {', '.join(DTYPES)}")
    dtype, shape, span = DTYPES[fields["dtype"]], fields["shape"], fields["data_offsets"]
    for numbers in (shape, span):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{numbers!r} is no list of sizes")
    needed = math.prod(shape) * dtype.itemsize
    if len(span) != 2 or span[1] - span[0] != needed:
        raise ValueError(f"shape {shape} needs {needed} bytes, its place is {span}")
    return dtype, tuple(shape), (span[0], span[1])
