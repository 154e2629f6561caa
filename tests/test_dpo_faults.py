"""What a training does when numbers, disk or memory fail."""

import errno
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import (
    files,
    records,
    sft,
)
from faults.shim import at_operation, fail, from_operation, watched
from tiny_llama import tiny_model
from torch import Tensor

from dpo import descent
from dpo.checkpoint import FILES
from dpo.objectives import SFT
from dpo.records import Records
from llama import fingerprint


def poison(monkeypatch: pytest.MonkeyPatch, steps: Sequence[int], share: float) -> None:
    """Makes the loss of some steps infinite or NaN, gradient and all."""
    usual = SFT.jobs

    def poisoned(self: SFT, step: int, parts: int) -> Any:
        jobs = usual(self, step, parts)
        if step in steps:
            measure = jobs[0].measure
            bad = lambda logp_S: {"loss": measure(logp_S)["loss"] * share}  # noqa: E731
            jobs[0] = replace(jobs[0], measure=bad)
        return jobs

    monkeypatch.setattr(SFT, "jobs", poisoned)


@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_a_step_without_a_finite_loss_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    sft(tiny_model(), tmp_path / "until", save_every=1, max_steps=3, min_learning_rate=3e-3)
    poison(monkeypatch, [3, 4], share)
    metrics = sft(tiny_model(), tmp_path / "bad", save_every=1, max_steps=5, min_learning_rate=3e-3)
    assert metrics["skipped"] == 2 and metrics["steps"] == 5
    bad = records(tmp_path / "bad")
    assert [record["loss"] is None for record in bad] == [False] * 3 + [True] * 2
    assert bad[3]["grad_norm"] is None
    was, now = (_tensors(tmp_path / name / FILES[0]) for name in ("until", "bad"))  # the last saves
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)  # weights and moments


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_too_many_bad_steps_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 99), math.nan)
    with pytest.raises(ValueError, match="training step 6: loss is not finite, 5 steps in a row"):
        sft(tiny_model(), tmp_path, epochs=3)
    with pytest.raises(ValueError, match="training step 6: loss is not finite, 5 steps in a row"):
        sft(tiny_model(), tmp_path, epochs=3)  # resume does not start the count anew


def test_bad_steps_apart_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, [0, 1, 2, 3, 5, 6, 7, 8], math.nan)
    assert sft(tiny_model(), epochs=3)["skipped"] == 8


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_running_out_of_memory_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(descent, "forward_logps", full)
    with pytest.raises(
        ValueError, match=r"step 0 does not fit.*lower micro_tokens \(now 64\) or set"
    ):
        sft(tiny_model())


def test_a_full_disk_leaves_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_model()
    sft(whole, tmp_path / "whole")
    usual, directory = descent.save_training, tmp_path / "full"

    def third_fails(*arguments: Any) -> None:
        if arguments[3]["progress"]["step"] == 6:
            monkeypatch.setattr("dpo.checkpoint._write_header", _no_room)
        usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(descent, "save_training", third_fails)
        with pytest.raises(OSError, match=r"training.0.safetensors could not be written.*No space"):
            sft(tiny_model(), directory)
    monkeypatch.undo()
    assert set(files(directory)) == {"train.jsonl", FILES[1]}
    resumed = tiny_model()
    sft(resumed, directory)
    assert fingerprint(resumed) == fingerprint(whole)
    assert files(directory) == files(tmp_path / "whole")


@pytest.mark.parametrize("act", [at_operation, from_operation])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_failure_of_the_disk_under_the_records_names_them(
    tmp_path: Path, act: Any, number: int
) -> None:
    def write(n: int) -> None:
        with watched(tmp_path, act(n, fail(number))), Records(tmp_path) as kept:
            kept.add({"step": 0})
            kept.sync()

    for n in count(1):  # the directory is there
        try:
            write(n)
        except OSError as error:
            assert (error.errno, error.filename) == (number, str(tmp_path / "train.jsonl")), n
        else:
            break  # beyond the last operation, or a full disk, which lets itself be synced
    assert n > 3  # open, truncate, write


def _no_room(*_: Any) -> None:
    raise OSError(28, "No space left on device")
