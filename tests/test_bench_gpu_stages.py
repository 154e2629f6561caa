"""The bench of the loop's stages in miniature, on the CPU: what it measures, keeps and removes."""

import gc
import shutil
import weakref
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import gpu_stages
from bench.gpu_stages import DTYPE, LARGE, LITTLE, sampling_need, stages, weight_bytes
from bench.gpu_training import pairs_of, plan, rows_of
from llama.parallel import Group
from llama.weights import read_checkpoint

NAMES = [
    "random bf16 weights drawn and written",
    "loaded for SFT",
    "SFT, one step",
    "saved, fp32",
    "loaded for sampling",
    "sampling",
    "sampling again",
    "loaded for DPO",
    "DPO, one step",
]
P = LITTLE.config.parameter_count


@pytest.fixture(autouse=True)
def quick_to_collect():
    """What was there before is no garbage: each stage would look through all of it again."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def alone():
    group = Group(0, 1, torch.device("cpu"), 60.0)
    yield group
    group.stop()


def test_it_runs_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = tmp_path / "room"
    room.mkdir()
    flags = ["--miniature", "--room", str(room), "--out", str(tmp_path / "gpu.md")]
    assert gpu_stages.main(flags) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "a CPU, in miniature" in text and text in capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip() for row in rows] == NAMES
    assert all(len(row) == gpu_stages.HEADER.count("|") - 1 for row in rows)
    assert list(room.iterdir()) == []


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Every model that is made, each when all before it are gone."""
    refs: list[weakref.ref] = []

    def watching(make, *how):
        assert [ref for ref in refs if ref() is not None] == []
        found = make(*how)
        refs.append(weakref.ref(found[0] if isinstance(found, tuple) else found))
        return found

    for name in ("random_model", "load_sharded", "load_split"):
        monkeypatch.setattr(gpu_stages, name, partial(watching, getattr(gpu_stages, name)))
    return refs


def test_one_model_is_in_memory_and_one_on_the_disk_at_a_time(
    tmp_path: Path, alone: Group, known: list[weakref.ref]
) -> None:
    planned, types = dict[str, int | None](), set()
    for stage in stages(tmp_path, LITTLE, alone):
        assert stage.seconds > 0 and stage.rate > 0 and stage.most is None
        assert sum(map(weight_bytes, tmp_path.iterdir())) < 1.02 * LITTLE.disk
        for path in tmp_path.iterdir():
            types |= {weight.dtype for weight in read_checkpoint(path).weights.like.values()}
        planned[stage.name] = stage.planned
    assert len(known) == 4 and types == {DTYPE, torch.float32}
    assert list(tmp_path.iterdir()) == []
    assert list(planned) == NAMES and planned.pop(NAMES[0]) is None
    loading = {planned[name] for name in ("loaded for SFT", "saved, fp32", "loaded for DPO")}
    assert loading == {4 * P} and planned["loaded for sampling"] == 2 * P
    assert planned["sampling"] == planned["sampling again"] > 2 * P
    # masters and gradients in fp32, both moments in bf16
    assert min(planned["SFT, one step"], planned["DPO, one step"]) > (4 + 4 + 2 * 2) * P


def test_the_directory_is_removed_where_a_stage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*how, **more):
        assert list(tmp_path.iterdir())
        raise ValueError("does not fit in memory")

    monkeypatch.setattr(gpu_stages, "train_sft", fail)
    with pytest.raises(ValueError, match="memory"):
        gpu_stages.main(["--miniature", "--room", str(tmp_path)])
    assert list(tmp_path.iterdir()) == [] and not torch.distributed.is_initialized()


def test_without_a_gpu_or_room_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_stages.main([]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here; --miniature runs on the CPU\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(30e9, 10e9, 20e9))
    assert gpu_stages.main(["--room", str(tmp_path)]) == 2
    said = f"error: {tmp_path} has 20.0 GB free, 27.0 GB are needed; --room names another place\n"
    assert capsys.readouterr().err == said


def test_a_pair_shares_its_prompt_and_a_row_is_a_line() -> None:
    (row, _), (pair, other) = rows_of(LITTLE.sft, 2), pairs_of(LITTLE.dpo, 2)
    assert (len(row.ids), sum(row.is_response)) == (60, 59)
    chosen, rejected = pair.chosen.ids, pair.rejected.ids
    assert len(chosen) == len(rejected) == 40 and sum(pair.chosen.is_response) == 20
    assert chosen[:20] == rejected[:20] != other.chosen.ids[:20] and chosen[20:] != rejected[20:]


def test_the_plan_says_that_all_stages_fit_an_h200_and_32_gb_of_disk() -> None:
    needs = [plan(LARGE.sft, DTYPE), plan(LARGE.dpo, DTYPE), sampling_need(LARGE.sampling)]
    assert all(need.total < 135e9 for need in needs), needs
    assert LARGE.disk < 32e9
    new, prompt = LARGE.sampling.most_new, LARGE.sampling.longest
    a_token = 2 * 32 * 4096 * 2  # bytes: keys and values of 32 layers, 4096 wide
    assert needs[2].parts["keys and values"] == (64 * prompt + 256 * new) * a_token
