"""Safetensors files, a tensor at a time: the library's own bytes, and no byte read in vain."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama import stored
from llama.header import read_header
from llama.stored import ALL, equal, file_order, read_part, write_tensors

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def some_tensors(*dtypes: torch.dtype) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"b": (7, 5), "a": (3,), "a.10": (1, 4), "a.9": (6, 1), "empty": (0, 3), "é": (2, 2)}
    return {
        name: torch.randn(shape, generator=draw).to(dtypes[number % len(dtypes)])
        for number, (name, shape) in enumerate(shapes.items())
    }


def write(file: Path, tensors: dict[str, torch.Tensor]) -> Path:
    like = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with file.open("wb") as stream:
        write_tensors(stream, like, ((name, tensors[name]) for name in file_order(like)))
    return file


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_has_the_librarys_own_bytes(tmp_path, dtype) -> None:
    tensors = some_tensors(dtype)
    theirs = safetensors.torch.save(tensors, {"format": "pt"})
    assert write(tmp_path / "x", tensors).read_bytes() == theirs


def test_types_may_be_mixed_and_each_tensor_begins_at_a_multiple_of_its_size(tmp_path) -> None:
    tensors = some_tensors(*DTYPES)
    file = write(tmp_path / "x", tensors)
    again = safetensors.torch.load_file(file)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    entries = read_header(file)
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in entries.values())


def test_a_file_is_of_what_was_announced(tmp_path) -> None:
    like = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with (tmp_path / "x").open("wb") as stream:
        for wrong in ([("b", like["b"])], [("a", torch.zeros(3))], [("a", like["a"].half())]):
            with pytest.raises(AssertionError):
                write_tensors(stream, like, wrong)
        with pytest.raises(ValueError, match="shorter"):
            write_tensors(stream, like, list(like.items())[:1])


bounds = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda ends: slice(*sorted(ends)))


@given(bounds | st.just(ALL), bounds | st.just(ALL), st.sampled_from(DTYPES))
def test_any_part_is_that_part(rows: slice, columns: slice, dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    with open(os.memfd_create("x"), "w+b") as stream:
        like = {"x": tensor.to("meta"), "y": torch.empty(9, dtype=dtype, device="meta")}
        write_tensors(stream, like, [("x", tensor), ("y", tensor.flatten()[:9])])
        stream.flush()
        entries = read_header(Path(f"/proc/self/fd/{stream.fileno()}"))
        for part in ((), (rows,), (rows, columns)):
            assert torch.equal(read_part(entries["x"], part), tensor[part])
        assert torch.equal(read_part(entries["y"], (rows,)), tensor.flatten()[:9][rows])


def test_a_part_is_read_into_its_own_place_where_that_fits(tmp_path) -> None:
    tensor = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    entry = read_header(write(tmp_path / "x", {"x": tensor}))["x"]
    rows = (slice(2, 5),)
    for out, fits in ((torch.zeros(3, 8), True), (torch.zeros(8, 3).T, False),
                      (torch.zeros(3, 8).double(), False)):  # fmt: skip
        found = read_part(entry, rows, out)
        assert (found is out) == fits and torch.equal(found, tensor[2:5])


def test_no_byte_is_read_in_vain(tmp_path, monkeypatch) -> None:
    """Counted where bytes enter memory; the next file's test counts what the kernel hands out."""
    read, read_into = [], stored._read_into

    def counting(out, stream, start, entry) -> None:
        read.append(out.nbytes)
        read_into(out, stream, start, entry)

    monkeypatch.setattr(stored, "_read_into", counting)
    entry = read_header(write(tmp_path / "x", {"x": torch.zeros(7, 8)}))["x"]
    some = slice(1, 3)
    for part, expected in [
        ((), [224]),
        ((some,), [64]),
        ((ALL, some), [8] * 7),
        ((some, some), [8, 8]),
    ]:
        read.clear()
        read_part(entry, part)
        assert read == expected


def test_a_file_that_shrinks_after_it_was_checked_is_noticed(tmp_path) -> None:
    file = write(tmp_path / "x", {"a": torch.ones(4), "b": torch.ones(4)})
    entries = read_header(file)
    os.truncate(file, file.stat().st_size - 4)
    assert torch.equal(read_part(entries["a"]), torch.ones(4))
    with pytest.raises(ValueError, match="'b' ends too soon"):
        read_part(entries["b"])


def kept(file: Path, start: int, size: int) -> bool:
    """Whether the page cache has all of these bytes. (Reading without waiting would fetch them.)"""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        each = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(pages)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(pages)), each
        )
        del first  # else the file cannot be unmapped
    assert not failed
    return all(n & 1 for n in each[start // mmap.PAGESIZE : -(-(start + size) // mmap.PAGESIZE)])


def test_a_ranks_own_rows_do_not_stay_in_the_page_cache(tmp_path) -> None:
    """Unless they were there before; what all ranks read stays: the next rank finds it there."""
    tensor = torch.arange(2**20, dtype=torch.float32).view(256, -1)
    file = write(tmp_path / "x", {"x": tensor})
    entry, rows = read_header(file)["x"], (slice(64, 192),)
    place = entry.start + tensor.nbytes // 2, 4096
    with file.open("rb") as stream:
        try:
            os.preadv(stream.fileno(), [bytearray(1)], 0, stored.DONTCACHE)
        except (OSError, NotImplementedError):
            pytest.skip("this kernel, or this file system, keeps all that is read")
        assert torch.equal(read_part(entry, rows), tensor[rows]) and kept(file, *place)
        os.fsync(stream.fileno())
        for part, stays in ((rows, False), ((), True)):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert not kept(file, *place)
            assert torch.equal(read_part(entry, part), tensor[part])
            assert kept(file, *place) == stays


def test_where_the_kernel_cannot_the_rows_are_read_all_the_same(tmp_path, monkeypatch) -> None:
    tensor = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    entry, rows = read_header(write(tmp_path / "x", {"x": tensor}))["x"], (slice(2, 5),)
    for error, passes in (
        (OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)), True),
        (NotImplementedError("preadv2: flags unavailable"), True),  # a Python without preadv2
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
    ):

        def refuse(*_: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(os, "preadv", refuse)
        if passes:
            assert torch.equal(read_part(entry, rows), tensor[rows])
        else:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                read_part(entry, rows)
        assert torch.equal(read_part(entry), tensor)


def test_equality_is_of_bits_and_needs_few_of_them_at_a_time(tmp_path) -> None:
    a, b = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    b[:8] = a[:8]
    b[8, :3], b[8, 3] = a[8, :3], -a[8, 3]
    tensors = {"a": a, "again": a, "b": b, "half": a.half(), "short": a[:8]}
    entries = read_header(write(tmp_path / "x", tensors))
    for step in (1, 40, 2**26):
        same = {name for name in tensors if equal(entries["a"], entries[name], step)}
        assert same == {"a", "again"}
