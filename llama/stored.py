"""Tensors in a safetensors file, one at a time: slices of one read, and nothing else; or written.

Read straight into their own memory, not through a mapping of the file: mapped pages would count as
this process's memory, and a rank that wants half of a file would seem to need all of it. Knows no
model and no rank.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from io import FileIO
from typing import Any, BinaryIO

import torch
from torch import Tensor

from llama.header import DTYPES, Entry

ALL = slice(None)
Part = tuple[slice, ...]  # of a tensor: rows, or rows and columns; () is all of it
DONTCACHE = 0x80  # a flag of preadv2's, in Linux since 6.14
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_part(entry: Entry, part: Part = (), out: Tensor | None = None) -> Tensor:
    """That part of a tensor, in the type that is stored, on the CPU; in `out`, if it fits there.

    Rows cost one read, columns one read a row. Some of the rows are a rank's own: no other process
    of the machine wants them, so the kernel is told to keep no copy. Raises ValueError if the file
    ends too soon.
    """
    cuts = [range(n)[cut] for n, cut in zip(entry.shape, (*part, ALL, ALL))]
    assert all(cut.step == 1 for cut in cuts) and len(entry.shape) <= 2, (entry.shape, part)
    sizes = [len(cut) for cut in cuts]
    if (
        out is None
        or out.dtype != entry.dtype
        or out.device.type != "cpu"
        or not out.is_contiguous()
    ):
        out = torch.empty(sizes, dtype=entry.dtype)
    assert list(out.shape) == sizes, (entry.shape, part, out.shape)
    width = entry.dtype.itemsize
    row_bytes = math.prod(entry.shape[1:]) * width
    start = entry.start + (cuts[0].start * row_bytes if cuts else 0)
    in_a_piece = tuple(out.shape[1:]) == entry.shape[1:]
    own = in_a_piece and tuple(out.shape) != entry.shape and sys.platform == "linux"
    with (_ReadOnce if own else FileIO)(entry.file) as stream:
        if in_a_piece:
            _read_into(out, stream, start, entry)
        else:
            start += cuts[1].start * width
            for number, row in enumerate(out):
                _read_into(row, stream, start + number * row_bytes, entry)
    return out


class _ReadOnce(FileIO):
    """A file whose bytes go through the page cache and do not stay there, unless they were there
    before. Memory for a copy that nobody reads again takes as long to get as that for the weights,
    and may push out what others have there.
    """

    def readinto(self, buffer: Any) -> int | None:
        try:
            count = os.preadv(self.fileno(), [buffer], self.tell(), DONTCACHE)
        except NotImplementedError:  # a Python that was built for kernels without such flags
            return super().readinto(buffer)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # an older kernel, or a file system that cannot
                raise
            return super().readinto(buffer)
        self.seek(count, os.SEEK_CUR)
        return count


def _read_into(out: Tensor, stream: Any, start: int, entry: Entry) -> None:
    rest = as_bytes(out)
    stream.seek(start)
    while rest:  # one call reads 2 GB at most
        count = stream.readinto(rest)
        if not count:
            raise ValueError(f"{entry.file}: tensor {entry.name!r} ends too soon: damaged")
        rest = rest[count:]


def as_bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory; what is written into it is in the tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def file_order(like: Mapping[str, Tensor]) -> list[str]:
    """The order in which the safetensors library itself stores tensors of one type: by name. Wider
    types come first, so that each begins at a multiple of its size."""
    return sorted(like, key=lambda name: (-like[name].dtype.itemsize, name))


def write_tensors(
    stream: BinaryIO, like: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """A whole file: the header at once, then each tensor when it comes, in `file_order(like)`.

    like: each tensor's type and shape, perhaps without data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in file_order(like):
        first, end = end, end + like[name].numel() * like[name].dtype.itemsize
        dtype, shape = _NAMES[like[name].dtype], list(like[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    stream.write(len(text).to_bytes(8, "little") + text)
    for expected, (name, tensor) in zip(file_order(like), tensors, strict=True):
        assert name == expected, (name, expected)
        assert (tensor.dtype, tensor.shape) == (like[name].dtype, like[name].shape), name
        stream.write(as_bytes(tensor.contiguous()))


def equal(a: Entry, b: Entry, step_bytes: int = 2**26) -> bool:
    """Whether two matrices are stored with the same bits; never holds more than a few rows."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step = max(1, step_bytes // max(1, a.shape[-1] * a.dtype.itemsize))
    parts = [(slice(first, first + step),) for first in range(0, a.shape[0], step)]
    return all(as_bytes(read_part(a, part)) == as_bytes(read_part(b, part)) for part in parts)
