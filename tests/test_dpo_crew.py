"""Processes that share a step: the same training but for rounding, to the same bytes each time; and
any of them may fail.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import SETTINGS, Killed, dpo, files, kill_before, records, sft, weights
from tiny_llama import tiny_model
from torch import nn
from torch.utils import backend_registration

from dpo import batches, descent, trainer
from dpo import crew as crews
from dpo.crew import crew
from dpo.lines import pack
from llama.lora import Lora, attach
from llama.parallel import Group, start

CPU = torch.device("cpu")
# of a weight, five steps of up to 3e-3 each: where a gradient is 5e-7 beside others of 0.1, AdamW
# makes a step of 2e-5 out of its last bits
ROUNDING = 1e-4


@pytest.mark.parametrize("train", [sft, dpo])
@pytest.mark.parametrize("processes", [2, 3])
def test_together_they_train_as_one(train: Any, processes: int, tmp_path: Path) -> None:
    alone, shared = tiny_model(), tiny_model()
    train(alone, tmp_path / "alone", processes=1)
    train(shared, tmp_path / "shared", processes=processes)
    torch.testing.assert_close(weights(shared), weights(alone), rtol=0, atol=ROUNDING)
    for ours, theirs in zip(records(tmp_path / "shared"), records(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("train", [sft, dpo])
@pytest.mark.parametrize("processes", [1, 2])
def test_packed_they_train_as_padded(
    train: Any, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And policy and reference still agree to the last bit before the first update."""
    padded, packed, passes = tiny_model(), tiny_model(), []

    def noted(lines: Any) -> Any:
        passes.append(lines)
        return pack(lines)

    with monkeypatch.context() as padding:
        padding.setattr(trainer, "PACKED", batches.PADDED)
        train(padded, tmp_path / "padded", replay_weight=0.1)
    monkeypatch.setattr(trainer, "PACKED", batches.Layout(batches.packs, noted))
    train(packed, tmp_path / "packed", processes=processes, replay_weight=0.1)
    assert len(passes) >= len(records(tmp_path / "packed"))
    torch.testing.assert_close(weights(packed), weights(padded), rtol=0, atol=ROUNDING)
    ours, theirs = records(tmp_path / "packed"), records(tmp_path / "padded")
    assert ours == [pytest.approx(record, rel=1e-4, abs=1e-5) for record in theirs]
    assert ours[0].get("margin", 0) == 0


def test_who_trains_on_packed_lines() -> None:
    """Models on a CPU, as written: compiled ones would be compiled for each step anew."""
    assert trainer._layout(SETTINGS, start()) is batches.PACKED
    assert trainer._layout(replace(SETTINGS, compile=True), start()) is batches.PADDED
    assert trainer._layout(SETTINGS, Group(0, 1, torch.device("cuda"), 1.0)) is batches.PADDED


def test_adapters_train_together_too() -> None:
    alone, shared = tiny_model(), tiny_model()
    for model, processes in ((alone, 1), (shared, 2)):
        attach(model, Lora(3, 6.0))
        sft(model, processes=processes, lora_rank=3, lora_alpha=6.0)
    torch.testing.assert_close(weights(shared), weights(alone), rtol=0, atol=1e-5)


def test_a_part_that_is_lost_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above can fail: without the child's gradients the weights are others."""
    alone, shared = tiny_model(), tiny_model()
    sft(alone, processes=1)
    monkeypatch.setattr(crews, "_add", lambda weights, gradients: None)
    sft(shared, processes=2)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weights(shared), weights(alone), rtol=0, atol=1e-5)


def test_policy_and_reference_agree_to_the_last_bit_before_the_first_update(tmp_path: Path) -> None:
    dpo(tiny_model(), tmp_path, processes=2, replay_weight=0.1)
    assert records(tmp_path)[0]["margin"] == 0 and records(tmp_path)[-1]["margin"] != 0


def test_killed_and_begun_again_they_end_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"processes": 2, "dropout": 0.2, "replay_weight": 0.1}
    clean, again = tiny_model(), tiny_model()
    dpo(clean, tmp_path / "clean", **how)
    with monkeypatch.context() as dying, pytest.raises(Killed):
        kill_before(dying, 3)
        dpo(tiny_model(), tmp_path / "again", **how)
    dpo(again, tmp_path / "again", **how)
    assert files(tmp_path / "again") == files(tmp_path / "clean")
    assert all(map(torch.equal, weights(again), weights(clean)))


def test_each_part_draws_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, usual = [], descent._dropout_seeded

    def noting(group: Group, seed: int, step: int, part: int) -> Any:
        parts.append((step, part))
        return usual(group, seed, step, part)

    monkeypatch.setattr(descent, "_dropout_seeded", noting)
    monkeypatch.setattr(descent, "crew", in_this_process)
    sft(tiny_model(), processes=3, max_steps=2)
    assert parts == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def in_this_process(model: nn.Module, work: crews.Work, count: int) -> Any:
    """A crew whose parts are worked on one after the other."""
    return nullcontext(lambda step: [work(step, part) for part in range(count)])


def adding(weight: torch.Tensor) -> crews.Work:
    """Part p's gradient at step s is 10 s + p, everywhere."""

    def work(step: int, part: int) -> crews.Measured:
        (weight * (10 * step + part)).sum().backward()
        return {"part": float(part)}

    return work


def test_weights_are_shared_and_gradients_are_added_up() -> None:
    layer = nn.Linear(3, 2, bias=False)
    before = layer.weight.detach().clone()
    seen: list[float] = []

    def work(step: int, part: int) -> crews.Measured:
        adding(layer.weight)(step, part)
        return {"sum": layer.weight.sum().item()}

    with crew(layer, work, 3) as together:
        assert torch.equal(layer.weight, before)
        for step in range(2):
            layer.weight.grad = None
            seen = [one["sum"] for one in together(step)]
            assert torch.equal(layer.weight.grad, torch.full((2, 3), 30.0 * step + 3))
            assert seen == [layer.weight.sum().item()] * 3  # a child sees the parent's update
            with torch.no_grad():
                layer.weight += 1
    assert multiprocessing.active_children() == []


def test_what_never_changes_is_not_moved() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    place = layer.bias.data_ptr()
    with crew(layer, adding(layer.weight), 2) as together:
        together(1)
    assert layer.bias.data_ptr() == place and layer.bias.grad is None


@pytest.mark.parametrize("bad", [0, 1])
def test_what_a_part_raises_is_raised_and_nobody_is_left(bad: int) -> None:
    layer = nn.Linear(3, 2, bias=False)

    def work(step: int, part: int) -> crews.Measured:
        if part == bad:
            raise ValueError(f"row 7 of part {part}")
        return adding(layer.weight)(step, part)

    with pytest.raises(ValueError, match=f"row 7 of part {bad}"), crew(layer, work, 2) as together:
        together(0)
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_told() -> None:
    layer = nn.Linear(3, 2, bias=False)

    def work(step: int, part: int) -> crews.Measured:
        if part == 1 and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return adding(layer.weight)(step, part)

    with crew(layer, work, 2) as together:
        together(0)
        for _ in range(2):  # and again, when there is nobody to tell
            with pytest.raises(ChildProcessError, match=r"code -9; .*lower micro_tokens"):
                together(1)


BESIDE_A_GPU = """
import torch
from dpo_runs import sft
from tiny_llama import tiny_model
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as make_up

make_up("gpu")
torch.set_num_threads(2)
sft(tiny_model())
sft(tiny_model())
try:
    sft(tiny_model(), processes=2)
except RuntimeError as error:  # so it is a GPU as far as autograd can see
    assert "autograd" in str(error)
    print("as if it were one")
"""
CAN_MAKE_UP = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.skipif(not CAN_MAKE_UP, reason="this torch lets no device be made up")
def test_beside_a_gpu_a_small_model_is_trained_again_and_again() -> None:
    """Where torch sees one, a process that is forked after a backward pass has none of its own."""
    command, here = [sys.executable, "-c", BESIDE_A_GPU], Path(__file__).parent
    told = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert told.stdout == "as if it were one\n"


LEFT_ALONE = """
import time
import torch
from torch import nn
from dpo.crew import crew

layer = nn.Linear(2, 2)

def work(step, part):
    layer(torch.ones(2)).sum().backward()
    return {}

with crew(layer, work, 3) as together:
    together(0)
    print("at work", flush=True)
    time.sleep(60)
"""


AT_WORK_ALONE = """
import time
from llama.children import in_processes

def work(n):
    print("at work", flush=True)
    time.sleep(20)  # the reference's log-probabilities, say: no word until they are all there
    print("left alone", flush=True)

in_processes(work, 2, "")
"""


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system tells no child of it")


@pytest.mark.parametrize("code", [LEFT_ALONE, pytest.param(AT_WORK_ALONE, marks=LINUX)])
def test_no_process_outlives_its_parent(code: str) -> None:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"at work\n"
        parent.kill()
        assert b"left" not in parent.stdout.read()  # to its end: all have gone


def test_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model, alone = tiny_model(), start()
    count = trainer._processes
    assert count(model, SETTINGS, alone, None) == 3
    assert count(model, SETTINGS, alone, 2) == 2
    assert count(model, SETTINGS, alone, 99) == SETTINGS.batch_size
    assert count(model, SETTINGS, Group(0, 2, CPU, 1.0), None) == 1
    assert count(model, SETTINGS, Group(0, 1, torch.device("cuda"), 1.0), None) == 1
    monkeypatch.setattr(trainer, "LARGEST", model.config.parameter_count - 1)
    assert count(model, SETTINGS, alone, None) == 1
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")  # where what torch computes with cannot fork
    assert count(model, SETTINGS, alone, None) == 1
