"""Every reader of files from outside, fed damaged ones: a few here, many in `make soak`."""

import json
from pathlib import Path
from random import Random

import pytest
from faults.fuzz import Reader, feed, fuzz, readers
from faults.mutators import any_bytes, json_line, json_value, safetensors

from llama.weights import read_checkpoint

INPUTS = 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    return readers(tmp_path_factory.mktemp("fuzz"))


def test_no_damage_does_anything_but_read_or_refuse(sound: list[Reader]) -> None:
    for number, reader in enumerate(sound):
        fuzz(reader, INPUTS, seed=number)
        assert reader.wrong == [], reader.name
    assert sum(reader.refused for reader in sound) > INPUTS * len(sound) / 2
    assert sum(len(reader.seen) for reader in sound) > 2000


def test_the_fuzz_sees_a_reader_that_breaks(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b'{"a": [1, 2]}')
    careless = Reader("x", file, json_value, lambda: json.loads(file.read_bytes())["a"][0] + 1)
    fuzz(careless, 50, seed=0)
    assert any("TypeError" in problem for problem in careless.wrong)
    assert any("KeyError" in problem for problem in careless.wrong)
    nameless = Reader("x", file, any_bytes, lambda: json.loads(file.read_bytes()))
    fuzz(nameless, 50, seed=0)
    assert sum("does not name the file" in problem for problem in nameless.wrong) > 10
    assert file.read_bytes() == b'{"a": [1, 2]}'


def test_the_mutators_change_most_and_are_drawn_from_the_seed() -> None:
    data = b'{"a": [1, {"b": null}]}\n{"c": "d"}\n'
    for mutate in (any_bytes, json_line, json_value, safetensors):
        made = [mutate(data, Random(seed)) for seed in range(200)]
        assert made == [mutate(data, Random(seed)) for seed in range(200)]
        assert sum(one != data for one in made) > 150 and len(set(made)) > 60


@pytest.mark.parametrize("name", ["\ud800.safetensors", "x" * 300, "a\0b", "../x"])
def test_an_index_that_names_what_no_file_is_called(sound: list[Reader], name: str) -> None:
    index = next(reader for reader in sound if reader.name == "index")
    good = index.file.read_bytes()
    tree = json.loads(good)
    tree["weight_map"][next(iter(tree["weight_map"]))] = name
    index.file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="points outside its directory"):
        index.read()
    index.file.write_bytes(good)


@pytest.mark.parametrize("kept", [0, 1, 30, 4000])
def test_a_pth_that_was_cut_short(sound: list[Reader], kept: int) -> None:
    part = next(reader for reader in sound if reader.name == ".pth").file
    good = part.read_bytes()
    part.write_bytes(good[:kept])
    with pytest.raises(ValueError, match="consolidated.00.pth is damaged"):
        read_checkpoint(part.parent)
    part.write_bytes(good)


@pytest.mark.parametrize("depth", [200, 600, *range(900, 1000, 9), 9999])
def test_brackets_within_brackets_break_no_reader(sound: list[Reader], depth: int) -> None:
    for reader in sound:
        good = reader.file.read_bytes()
        reader.file.write_bytes(_nested(reader, good, depth))
        feed(reader)
        reader.file.write_bytes(good)
        assert reader.wrong == [], reader.name


def _nested(reader: Reader, good: bytes, depth: int) -> bytes:
    """Its file with so many brackets in the place of a value."""
    deep = b"[" * depth + b"]" * depth
    if reader.mutate is safetensors:
        header = b'{"__metadata__": {"state": ' + deep + b"}}"
        return len(header).to_bytes(8, "little") + header
    if reader.mutate in (json_value, json_line):
        return b'{"' + good.split(b'"')[1] + b'": ' + deep + b"}"
    return b"seed = " + deep
