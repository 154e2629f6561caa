"""A profile and curves beside a training: what they say, and that the training is the same."""

import gzip
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from dpo_runs import SETTINGS, Killed, kill_before, pairs, records, rows, weights
from tiny_llama import tiny_model

from dpo import Telemetry, descent, train_dpo, train_sft
from dpo.profile import PHASES, TABLE, TRACE, Heard, Profile, Unprofiled, plan
from dpo.records import Records
from dpo.telemetry import FOLDER
from llama.parallel import Group, start


def trained(directory, telemetry, processes=1, kind="dpo", **changes):
    how = {"batch_size": 2, "dropout": 0.1} | changes  # dropout: it would show a drawn number
    model, how = tiny_model(), replace(SETTINGS, **how)
    kept = {"seed": 0, "group": start(), "directory": directory, "processes": processes}
    if kind == "sft":
        train_sft(model, rows(18), how, **kept, telemetry=telemetry)
    else:
        train_dpo(model, pairs(18), how, **kept, telemetry=telemetry)
    return weights(model)


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def table_of(directory):
    """Seconds a step by phase, and the other lines."""
    lines = (directory / FOLDER / TABLE).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("a step of"))
    rows = [line.split() for line in lines[first + 1 : first + 2 + len(PHASES)]]
    return {name: float(seconds) for name, seconds, _ in rows}, lines


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_profile_is_written_and_no_bit_changes(tmp_path, kind, processes):
    without = trained(tmp_path / "without", Telemetry(), processes, kind)
    profiled = trained(tmp_path / "with", Telemetry(profile=True), processes, kind)
    assert same(without, profiled)
    for path in (tmp_path / "without").iterdir():
        assert path.read_bytes() == (tmp_path / "with" / path.name).read_bytes(), path.name
    assert not (tmp_path / "without" / FOLDER).exists()
    assert {path.name for path in (tmp_path / "with" / FOLDER).iterdir()} == {TABLE, TRACE}
    seconds, lines = table_of(tmp_path / "with")
    assert list(seconds) == [*PHASES, "all"] and min(seconds.values()) >= 0
    assert seconds["all"] == pytest.approx(sum(seconds[name] for name in PHASES), abs=1e-5)
    assert seconds["forward"] > 0 and seconds["backward"] > 0 and seconds["optimizer"] > 0
    assert ("process 0 of the 2 that share" in lines[0]) == (processes == 2)
    assert "clocked: steps 2 to 4" in lines and f"{TRACE}: steps 6 to 8" in lines
    assert any(line.startswith("MFU") and "unknown" in line for line in lines)


def test_the_trace_is_chrome_s_and_names_the_phases(tmp_path):
    trained(tmp_path, Telemetry(profile=True))
    trace = json.loads(gzip.decompress((tmp_path / FOLDER / TRACE).read_bytes()))
    names = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
    assert set(PHASES) <= set(names)
    assert names.count("optimizer") == 3
    assert {"ProfilerStep#1", "ProfilerStep#2", "ProfilerStep#3"} <= set(names)


@pytest.mark.parametrize("left", range(1, 12))
def test_the_windows_fit_into_the_steps_that_are_left(left):
    warm, clocked, first, traced = plan(left)
    assert min(warm, first, traced) >= 0 and clocked >= 1
    assert warm + clocked + first + traced <= left
    assert bool(traced) == bool(first) == (left >= 4)
    assert bool(warm) == (left >= 2)
    assert plan(left)[1:] == (3, 1, 3) or left < 9


def test_a_short_training_has_a_table_at_least(tmp_path):
    trained(tmp_path, Telemetry(profile=True), max_steps=2)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [TABLE]
    assert "clocked: step 1" in table_of(tmp_path)[1]


def test_a_killed_and_profiled_training_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", Telemetry(), save_every=5)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, 7)  # in the middle of the trace
        trained(tmp_path / "out", Telemetry(profile=True), save_every=5)
    assert [path.name for path in (tmp_path / "out" / FOLDER).iterdir()] == [TABLE]
    assert same(whole, trained(tmp_path / "out", Telemetry(profile=True), save_every=5))
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    lines = table_of(tmp_path / "out")[1]  # from the save on there were four steps
    assert "clocked: step 6" in lines and f"{TRACE}: step 8" in lines


def test_a_phase_inside_another_is_taken_out_of_it(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    profile = Profile(tmp_path, torch.device("cpu"), "x", range(4, 5), peak=100.0)
    with profile.step():  # 0: other
        with profile.phase("communication"):  # 1
            with profile.phase("forward"):  # 2 … 3
                pass
            with profile.phase("backward"):  # 4 … 5
                pass
        with profile.phase("optimizer"):  # 6 … 7, … 8
            Heard(**vars(start()), clock=profile.phase).sum([1.0])
        profile.count(tokens=22.0, operations=550.0)
    seconds, lines = table_of_text(profile)
    assert seconds == {
        "data": 0, "forward": 1, "backward": 1, "optimizer": 2, "communication": 4, "other": 3,
        "all": 11,
    }  # fmt: skip
    assert lines[-2].split() == ["tokens/s", "2"]
    assert lines[-1].split()[:2] == ["MFU", "50.0%"]


def table_of_text(profile):
    lines = profile.table().splitlines()
    rows = [line.split() for line in lines[4:11]]
    return {name: float(seconds) for name, seconds, _ in rows}, lines


def test_the_sums_of_a_group_are_heard_only_if_it_is_profiled():
    group, heard = start(), []
    assert Unprofiled().heard(group) is group

    class Listening(Unprofiled):
        def phase(self, name):
            heard.append(name)
            return super().phase(name)

    assert Heard(**vars(group), clock=Listening().phase).sum([1.5]) == [1.5]
    assert heard == ["communication"]


def test_clipping_gets_the_group_that_is_heard(tmp_path, monkeypatch):
    groups, usual = [], descent.clip_grad_norm

    def clip(model, most, group):
        groups.append(type(group))
        return usual(model, most, group)

    monkeypatch.setattr(descent, "clip_grad_norm", clip)
    trained(tmp_path / "without", Telemetry(), max_steps=1)
    trained(tmp_path / "with", Telemetry(profile=True), max_steps=1)
    assert groups == [Group, Heard]


def test_kernels_that_talk_to_other_cards_are_added_up(tmp_path):
    """With a made-up trace: three steps, of them one with two collectives."""
    kernels = {"ncclDevKernel_AllGather_RING_LL": 3e6, "nccl:all_gather": 5e6, "gemm": 7e6}
    events = [SimpleNamespace(key=k, self_device_time_total=us) for k, us in kernels.items()]
    trace = SimpleNamespace(
        export_chrome_trace=lambda path: Path(path).write_bytes(b"trace"),
        key_averages=lambda: [*events, events[0]],
    )
    profile = Profile(tmp_path, torch.device("cuda"), "x", range(9), None)
    profile._keep(trace)  # not all steps are traced yet
    assert profile.collectives is None and list(tmp_path.iterdir()) == []
    profile.now, profile.seconds["other"] = 9, 1.0
    profile._keep(trace)
    assert [path.name for path in tmp_path.iterdir()] == [TRACE]
    assert profile.collectives == 6.0
    assert "collectives: 2.000000 seconds a step on the device" in profile.table()


class Writer:
    """Stands in for TensorBoard's."""

    made: ClassVar[list["Writer"]] = []

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.points, self.closed = log_dir, purge_step, [], False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.points.append((name, value, step))

    def close(self):
        self.closed = True


@pytest.fixture
def board(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_the_curves_are_the_records(tmp_path, board):
    without = trained(tmp_path / "without", Telemetry())
    assert board == []
    assert same(without, trained(tmp_path / "with", Telemetry(tensorboard=True)))
    (writer,) = board
    assert writer.log_dir == tmp_path / "with" / FOLDER
    assert writer.purge_step == 0 and writer.closed
    assert writer.points == [
        (name, value, record["step"])
        for record in records(tmp_path / "without")
        for name, value in record.items()
        if name != "step"
    ]


def test_the_curves_of_a_resumed_training_begin_anew_at_its_step(tmp_path, board, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, 5)
        trained(tmp_path, Telemetry(tensorboard=True))
    trained(tmp_path, Telemetry(tensorboard=True))
    first, second = board
    assert first.closed and max(step for _, _, step in first.points) == 4
    assert second.purge_step == 4 == min(step for _, _, step in second.points)


def test_what_is_unknown_is_not_drawn(tmp_path):
    writer = Writer(tmp_path, 0)
    with Records(tmp_path, board=writer) as kept:
        kept.add({"step": 3, "loss": None, "tokens": 5})
    assert writer.points == [("tokens", 5, 3)]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="needs the package tensorboard .*pip install tensorboard"):
        Telemetry(tensorboard=True)
    assert Telemetry(profile=True).board(None, 0) is None
