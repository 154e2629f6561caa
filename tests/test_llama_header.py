"""What a safetensors file says it holds: headers that lie are refused, by file and tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from llama.header import read_header


def header_file(path, header: dict | bytes, data: bytes = b"", length: int | None = None):
    """A file that begins like safetensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list, span: list, dtype: str = "F32") -> dict:
    """One tensor's place in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, 12, "'b' begins at byte 4"),
        ({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, 12, "'b' begins at byte 8"),
        ({"a": entry([1], [4, 8])}, 8, "'a' begins at byte 4"),
        ({"a": entry([2], [0, 8])}, 4, "holds 4 bytes of data, .* describes 8"),
        ({"a": entry([2], [0, 8])}, 12, "holds 12 bytes"),
        ({"a": entry([3], [0, 8])}, 8, "'a': shape .3. needs 12 bytes"),
        ({"a": entry([2**62, 2**62], [0, 8])}, 8, "'a': shape"),
        ({"a": entry([-1], [0, 4])}, 4, "'a': .* no list of sizes"),
        ({"a": entry([True], [0, 4])}, 4, "'a': .* no list of sizes"),
        ({"a": entry(["1"], [0, 4])}, 4, "'a': .* no list of sizes"),
        ({"a": entry([1], [0])}, 4, "'a': "),
        ({"a": entry([1], [0, 1], "F8_E4M3")}, 1, "'a': type 'F8_E4M3'"),
        ({"a": 3}, 0, "'a': expected exactly"),
        (b'{"a": {"dtype":"F32","shape":[],"data_offsets":[0,4]},'
         b' "a": {"dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4, "stands there twice"),
        (b"[]", 0, "no JSON object"),
        (b" {}", 0, "no JSON object"),
        ({"__metadata__": {"a": 1}}, 0, "no table of texts"),
        ({"a": entry([1], [0, 4], ["F32"])}, 4, "'a': type"),
        (b"{", 0, "cannot be read"),
        (b"\xff\xfe", 0, "cannot be read"),
        (b"[" * 100_000, 0, "cannot be read"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, header, data, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_header(header_file(tmp_path / "x.safetensors", header, b"\0" * data))


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(tmp_path, length) -> None:
    file = header_file(tmp_path / "x.safetensors", b"{}", length=length)
    with pytest.raises(ValueError, match=f"announces a header of {length} bytes"):
        read_header(file)


SOUND = save({"a": torch.ones(2, 3), "b": torch.ones(5).bfloat16()}, {"format": "pt"})
edits = st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=3)


@given(edits=edits, kept=st.just(len(SOUND)) | st.integers(0, len(SOUND)))
def test_what_is_accepted_can_be_opened(edits: list[tuple[int, int]], kept: int) -> None:
    """Any damage is refused by a ValueError or leaves a file that safetensors reads alike."""
    damaged = bytearray(SOUND)
    for place, byte in edits:
        damaged[place] = byte
    with TemporaryDirectory() as directory:
        file = Path(directory) / "x.safetensors"
        file.write_bytes(damaged[:kept])
        try:
            entries = read_header(file)
        except ValueError as error:
            assert str(file) in str(error)
            return
        with safe_open(file, "pt") as stored:
            assert set(stored.keys()) == set(entries)
            for name, entry in entries.items():
                tensor = stored.get_tensor(name)
                assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape)


def test_a_sound_file() -> None:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "x.safetensors"
        file.write_bytes(SOUND)
        found = {name: (entry.dtype, entry.shape) for name, entry in read_header(file).items()}
    assert found == {"a": (torch.float32, (2, 3)), "b": (torch.bfloat16, (5,))}
