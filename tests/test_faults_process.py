"""What befalls a process from outside: its directory goes, the clock jumps, memory runs out, it is
told to stop.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults.driver import begin, differences, end, forked, left, run_to_end, said
from faults.shim import at_operation
from faults.world import flags, make_world

from judge.canaries import CANARIES
from loop import models
from loop.command import run_command
from seed.start import open_start
from train import SelfRewarding


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("process") / "world")


@pytest.fixture(scope="module")
def clean(world: Path) -> dict[str, str]:
    run = world.parent / "clean"
    assert run_to_end(world, run) == 0
    return left(run)


def after(prepare: Callable[[], object], world: Path, run: Path) -> int:
    """The exit code of a run in a process that was prepared so."""

    def work() -> int:
        prepare()
        return run_command(open_start, SelfRewarding, flags(world, run))

    return end(forked(work, said=Path(os.path.abspath(run)).with_suffix(".said")))


def test_a_terminal_that_cannot_show_every_character_gets_the_table(world, clean, tmp_path) -> None:
    run = tmp_path / "run"

    def narrow() -> None:
        sys.stdout.reconfigure(encoding="ascii", errors="strict")
        sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")  # as Python has it

    assert after(narrow, world, run) == 0
    assert differences(left(run), clean) == []
    said = run.with_suffix(".said").read_text(encoding="ascii")
    assert "complete: everything lies in" in said


def test_a_run_directory_may_have_any_name(world, clean, tmp_path) -> None:
    run = tmp_path / os.fsdecode(b"run\xff")
    assert after(lambda: None, world, run) == 0
    assert differences(left(run), clean) == []
    assert "<title>Self-rewarding run run\ufffd</title>" in (run / "report.html").read_text("utf-8")


def test_a_deleted_working_directory_is_not_needed(world, clean, tmp_path: Path) -> None:
    gone, home = tmp_path / "gone", Path.cwd()
    run = tmp_path / "run"

    def lose() -> None:
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    assert after(lose, world, run) == 0
    assert differences(left(run), clean) == []

    def lose_relative() -> int:
        lose()
        return run_command(open_start, SelfRewarding, flags(world, Path("run")))

    assert end(forked(lose_relative, said=tmp_path / "said")) == 2
    assert "error: " in (tmp_path / "said").read_text()
    assert "run" in (tmp_path / "said").read_text().splitlines()[-1]
    assert Path.cwd() == home


def test_a_clock_that_jumps_back_changes_nothing(world, clean, tmp_path: Path) -> None:
    hours = iter(range(10**9, 0, -3600))

    def jump() -> None:
        time.time = lambda: float(next(hours))
        time.time_ns = lambda: next(hours) * 10**9

    assert after(jump, world, tmp_path / "run") == 0
    assert differences(left(tmp_path / "run"), clean) == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_memory_that_runs_out_anywhere_is_one_line_and_the_run_goes_on(
    world, clean, tmp_path: Path, error: RuntimeError
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    def fill() -> None:
        models.load_replica = full  # a model that is to sample, after M1 was trained

    run = tmp_path / "run"
    assert after(fill, world, run) == 2
    assert said(run).splitlines()[-1] == f"error: {error}"
    assert run_to_end(world, run) == 0 and differences(left(run), clean) == []


def test_an_error_of_ours_keeps_its_trace(world: Path, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shape mismatch")

    def breaks() -> None:
        models.load_replica = broken

    assert after(breaks, world, tmp_path / "run") not in (0, 2)
    assert "Traceback" in said(tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_of_a_write_ends_the_run_with_its_code_and_a_word(
    world, clean, tmp_path: Path, number: int, code: int
) -> None:
    run, there = tmp_path / "run", tmp_path / "there"

    def wait(operation: str, path: Path) -> None:
        there.touch()
        while True:
            time.sleep(0.01)

    pid = begin(world, run, act=at_operation(150, wait))
    while not there.exists():
        time.sleep(0.01)
    os.kill(pid, number)
    assert end(pid) == code
    last = said(run).splitlines()[-1]
    assert last == "stopped; what is finished is kept: the same command goes on"
    assert run_to_end(world, run) == 0 and differences(left(run), clean) == []


def test_a_judge_that_says_no_score_ends_the_run_with_the_reason(world, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_to_end(world, run, "--set", "judging.max_new_tokens=1") == 2
    last = said(run).splitlines()[-1]
    assert "0 preference pairs for M2, at least 1 are needed" in last and "manifest.json" in last
    assert not (run / "M2").exists() and not (run / "M2.unfinished").exists()


def test_the_canaries_of_every_model_stand_in_the_report_and_on_its_page(world, clean) -> None:
    report = json.loads((world.parent / "clean/report.json").read_text())
    assert list(report["models"]) == ["M1", "M2", "M3"]
    for model in report["models"].values():
        assert model["judging"]["canaries"].keys() == CANARIES.keys()
    assert {"", ":", "Score: 5"} < set(CANARIES.values())
    page = (world.parent / "clean/report.html").read_text().partition("<h2>Canaries</h2>")[2]
    assert all(f"<th>{name.replace('_', ' ')}</th>" in page for name in CANARIES)


def test_a_line_of_100_mb_is_refused_without_reading_it_all(world, tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    shutil.copytree(world / "seed", seed)
    os.truncate(seed / "ift.jsonl", 100_000_000)  # zeros, and no end of the line
    lines = (world / "seed/ift.jsonl").read_bytes().count(b"\n")
    assert run_to_end(world, tmp_path / "run", "--seed-data", str(seed)) == 2
    words = said(tmp_path / "run")
    assert f"ift.jsonl:{lines + 1}: expected at most 67,108,864 bytes in a line" in words
    assert not (tmp_path / "run").exists()
