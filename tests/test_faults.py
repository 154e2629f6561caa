"""The smallest world's loop, killed, cut off and starved at a few of its operations: `make soak`
does the same at every one (docs/faults.md).
"""

import errno
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from faults.driver import begin, differences, end, left, run_to_end, said
from faults.power import FATES, Disk
from faults.shim import at_operation, watched
from faults.soak import Bench

from dpo.checkpoint import FILES
from loop import files, lock
from loop.branch import MADE_FROM, Origin, still_valid
from loop.command import run_command
from loop.manifest import Manifest
from loop.status import standing
from seed.start import open_start
from train import SelfRewarding


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


def places(bench: Bench, count: int) -> list[int]:
    """So many operations, from one end of a run to the other, and of many kinds."""
    return [round((k + 0.37) * len(bench.trace) / count) for k in range(count)]


def test_the_operations_are_those_of_every_phase(bench: Bench) -> None:
    assert len(bench.trace) > 500
    assert {operation for operation, _ in bench.trace} >= {
        "mkdir", "open", "write", "truncate", "fsync", "replace", "unlink", "rmdir",
    }  # fmt: skip
    names = {path.name for _, path in bench.trace}
    for phase in ("training.0.safetensors", "train.jsonl", "prompts.jsonl", "responses.jsonl"):
        assert phase in names
    assert {"judgements.jsonl", "reference.safetensors", "eval.json", "report.html"} <= names
    units = {"/".join(path.parts[-2:]) for _, path in bench.trace if ".units" in str(path)}
    for made in ("responses", "judgements", "eval_answers", "eval_judgements"):
        assert {f"{made}.jsonl.units/{part}.jsonl" for part in ("0-2", "2-4")} <= units
    assert {f"eval_{made}.jsonl.units/0-2.jsonl" for made in ("compared", "drift")} <= units


def test_killed_in_the_middle_the_next_run_ends_as_the_clean_one(bench: Bench) -> None:
    for n in places(bench, 4):
        assert bench.killed(n) == "", bench.trace[n]


def test_a_training_killed_before_it_is_recorded_takes_no_step_again(
    bench: Bench, tmp_path: Path
) -> None:
    run, steps = tmp_path / "run", tmp_path / "steps"
    moved = place_of(bench, "clean/M2")
    record = next(n for n in range(moved, len(bench.trace)) if "manifest" in bench.trace[n][1].name)
    run_to_end(bench.world, run, act=at_operation(record, lambda *_: os._exit(137)))
    assert (run / "M2/config.json").exists() and "M2" not in stage_times(run)

    def note(operation: str, path: Path) -> None:
        if operation == "replace" and path.parent.name == "M2.unfinished":
            with steps.open("a") as file:
                file.write(f"{path.name}\n")

    assert run_to_end(bench.world, run, act=note) == 0
    names = steps.read_text().splitlines()
    assert "config.json" in names and not [name for name in names if name in FILES]
    assert differences(left(run), bench.clean) == []


def test_killed_before_it_forgets_what_it_went_on_from_the_next_run_does(bench: Bench) -> None:
    n = place_of(bench, "M2/training.0.safetensors", "unlink")
    assert bench.trace[n + 1][1].name == "training.1.safetensors"
    assert bench.killed(n + 1) == "", bench.trace[n + 1]


def test_after_a_power_cut_the_next_run_ends_as_the_clean_one(bench: Bench) -> None:
    for n, fate in zip(places(bench, 4), FATES):
        assert bench.cut(n, fate) == "", (bench.trace[n], fate)


def test_the_disk_fails_with_a_clear_error_and_room_mends_it(bench: Bench) -> None:
    full, broken, last = places(bench, 3)
    assert bench.failing(full, errno.ENOSPC, once=False) == "", bench.trace[full]
    assert bench.failing(broken, errno.EROFS, once=False) == "", bench.trace[broken]
    sync = next(n for n in range(last, len(bench.trace)) if bench.trace[n][0] == "fsync")
    assert bench.failing(sync, errno.EIO, once=True) == "", bench.trace[sync]


def test_kills_from_outside_leave_the_clean_runs_bytes(bench: Bench) -> None:
    kills, wrong = bench.harassed(seed=1, most=4)
    assert kills > 0 and wrong == ""


def test_without_syncing_a_power_cut_leaves_names_without_bytes(tmp_path: Path) -> None:
    """Negative control of the cuts: what was written and not synced is seen to be lost."""
    cuts = {}
    for name in ("synced", "careless"):
        disk = Disk(tmp_path / name)

        def act(operation: str, path: Path, disk: Disk = disk) -> None:
            if operation != "fsync" or disk.root.name == "synced":
                disk.act(operation, path)

        with watched(tmp_path / name, act):
            files.write(tmp_path / name / "rows.jsonl", b"rows")
        for fate in FATES:
            disk.cut(fate, tmp_path / f"{name}-{fate}")
        cuts[name] = [
            {path.name: path.read_bytes() for path in (tmp_path / f"{name}-{fate}").iterdir()}
            for fate in FATES
        ]
    assert cuts["synced"] == [{"rows.jsonl": b"rows"}] * 4
    assert cuts["careless"][:3] == [{}, {"rows.jsonl": b""}, {}]


def test_any_flipped_bit_of_our_rows_is_noticed(bench: Bench) -> None:
    run = bench.home / "clean"
    manifest = Manifest(run)
    for name in ("pairs", "prompts"):
        path = run / "M1" / f"{name}.jsonl"
        good = path.read_bytes()
        for n in range(len(good)):
            path.write_bytes(good[:n] + bytes([good[n] ^ 1 << n % 8]) + good[n + 1 :])
            assert manifest.faults(f"M1/{name}.jsonl") == [f"{path}: damaged"]
        path.write_bytes(good)
        assert manifest.faults(f"M1/{name}.jsonl") == []


# Where a run stands


def looked_at(run: Path) -> list[str]:
    """What `--status` says; it changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lines = standing(open_start, SelfRewarding, run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    return lines


def place_of(bench: Bench, words: str, operation: str = "replace") -> int:
    """The first operation of that kind on a path that ends so."""
    return next(
        n for n, (o, path) in enumerate(bench.trace) if o == operation and str(path).endswith(words)
    )


def test_status_tells_where_a_run_stands_also_while_it_runs(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    at = place_of(bench, "M1/judgements.jsonl.units/2-4.jsonl")
    there = tmp_path / "there"
    pid = begin(bench.world, run, act=at_operation(at, lambda *_: there.touch() or time.sleep(60)))
    while not there.exists():
        time.sleep(0.02)
    lines = looked_at(run)
    assert lines[0].startswith(f"{run}: 6 stages done, ")
    assert re.match(r"  M1: training \d+\.\d s · ", lines[1]) and "responses" in lines[1]
    part = "M1: judging itself, part 2 of 6 (M1/judgements.jsonl)"
    assert lines[-2:] == [f"next: {part}", f"process {pid} is at it"]
    os.kill(pid, signal.SIGKILL)
    end(pid)
    assert looked_at(run)[-1] == "nobody here is at it"
    assert run_to_end(bench.world, run) == 0
    assert looked_at(run)[-2] == "next: nothing, it is complete"


def test_status_counts_the_steps_of_a_training(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    at = place_of(bench, "M2.unfinished/config.json")
    run_to_end(bench.world, run, act=at_operation(at, lambda *_: os._exit(137)))
    lines, steps = looked_at(run), len((run / "M2.unfinished/train.jsonl").read_text().splitlines())
    assert steps > 1 and f"  M2: begun, {steps} training steps taken" in lines
    assert lines[-2] == "next: M2: DPO (M2)"


def test_status_is_a_flag_and_refuses_what_is_no_run(bench: Bench, tmp_path, capsys) -> None:
    flags = ["--status", "--run", str(bench.home / "clean")]
    assert run_command(open_start, SelfRewarding, flags) == 0
    assert "it is complete" in capsys.readouterr().out
    assert run_command(open_start, SelfRewarding, ["--status", "--run", str(tmp_path)]) == 2
    assert "no run lies there" in capsys.readouterr().err


def test_a_lock_that_is_free_has_no_owner(tmp_path: Path) -> None:
    assert lock.owner(tmp_path) is None
    held = lock.take(tmp_path)
    assert lock.owner(tmp_path) == os.getpid()
    lock.release(held)
    assert lock.owner(tmp_path) is None


# A run from another run's model


def stage_times(run: Path) -> dict[str, float]:
    return {path: entry["seconds"] for path, entry in Manifest(run).stages.items()}


def test_a_branch_takes_over_what_its_settings_would_make_the_same(bench, tmp_path) -> None:
    old, new = bench.home / "clean", tmp_path / "new"
    was = left(old)
    more = ("--from", f"{old}@M2", "--set", "judging.k=3")
    dies = at_operation(40, lambda *_: os._exit(137))  # in the middle of taking over
    assert run_to_end(bench.world, new, *more, act=dies) == 137
    assert (new / "M1").exists() and not (new / "manifest.json").exists()
    assert run_to_end(bench.world, new, *more) == 0
    before, after = stage_times(old), stage_times(new)
    kept = {path for path in before if before[path] == after[path] and path in said_taken(new)}
    assert kept >= {"M1", "M1/prompts.jsonl", "M1/judgements.jsonl", "M1/pairs.jsonl", "M2"}
    assert kept >= {"M1/eval_answers.jsonl", "M2/prompts.jsonl", "M2/responses.jsonl"}
    for path in ("M1/eval_judgements.jsonl", "M2/judgements.jsonl", "M3"):
        assert path not in kept
    k = {json.loads(row)["k"] for row in (new / "M2/judgements.jsonl").read_text().splitlines()}
    assert k == {0, 1, 2}
    assert os.path.samefile(old / "M2/model.safetensors", new / "M2/model.safetensors")
    assert differences(left(old), was) == []
    assert run_to_end(bench.world, new, *more) == 0  # the same command goes on
    assert run_to_end(bench.world, new, "--set", "judging.k=3") == 0  # it need not be said again
    assert run_to_end(bench.world, new, "--from", f"{old}@M1", "--set", "judging.k=3") == 2
    assert f"--from: {old}@M2 → {old}@M1" in said(new)


def said_taken(run: Path) -> set[str]:
    """The stages that the last process found done."""
    return {
        line.rpartition("(")[2][:-1] for line in said(run).splitlines() if "done before" in line
    }


def test_a_branch_with_the_same_settings_ends_as_the_old_run(bench: Bench, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert run_to_end(bench.world, new, "--from", f"{bench.home / 'clean'}@M2") == 0
    odd = differences(left(new), bench.clean)
    assert odd == ["config.json", "manifest.json"]  # where it began; and in what order
    assert stage_times(new).keys() == stage_times(bench.home / "clean").keys()


def test_a_branch_that_cannot_be_is_refused(bench: Bench, tmp_path: Path) -> None:
    old = bench.home / "clean"
    for origin, words in (
        (f"{old}@M9", "has no finished M9; finished are: M1, M2, M3"),
        (f"{tmp_path}@M1", "no run lies there"),
        ("M1", "expected a run directory and a model in it"),
        (f"{tmp_path / 'new'}@M1", "cannot begin from itself"),
    ):
        assert run_to_end(bench.world, tmp_path / "new", "--from", origin) == 2
        assert words in said(tmp_path / "new")
    path = old / "M1/pairs.jsonl"
    good = path.read_bytes()
    path.write_bytes(b"")
    assert run_to_end(bench.world, tmp_path / "new", "--from", f"{old}@M2") == 2
    path.write_bytes(good)
    assert f"{path}: damaged; run the old run's command" in said(tmp_path / "new")
    assert run_to_end(bench.world, tmp_path / "new", "--from", f"{old}@M2") == 0


def test_a_refused_resume_says_how_to_branch(bench: Bench) -> None:
    assert run_to_end(bench.world, bench.home / "clean", "--set", "dpo.beta=0.3") == 2
    words = said(bench.home / "clean")
    assert "dpo.beta: 0.1 → 0.3" in words
    assert f"--run NEW --from {bench.home / 'clean'}@M3" in words


ORDER = ["M1", "M1/eval.json", "M1/prompts.jsonl", "M1/responses.jsonl", "M1/pairs.jsonl", "M2"]
ORDER += ["M2/eval_answers.jsonl", "M2/prompts.jsonl", "M2/responses.jsonl"]
ORDER += ["M2/judgements.jsonl.units/0-6.jsonl", "M2/new.jsonl"]


@pytest.mark.parametrize(
    ("changed", "dropped"),
    [
        ((), ()),
        (("iterations", "dpo", "sft", "choice", "pairs"), ()),
        (("evaluation",), ("M1/eval.json", "M2/eval_answers.jsonl")),
        (("judging",), ("M1/eval.json",)),
        (("prompts",), ("M2/prompts.jsonl", "M2/responses.jsonl")),
        (("responses",), ("M1/eval.json", "M2/eval_answers.jsonl", "M2/responses.jsonl")),
        (("seed",), ("M1/eval.json", *ORDER[6:])),
        (("contents of seed",), ("M1/eval.json", *ORDER[6:])),
    ],
)
def test_what_is_still_valid(changed: tuple[str, ...], dropped: tuple[str, ...]) -> None:
    unknown = ("M2/judgements.jsonl.units/0-6.jsonl", "M2/new.jsonl")
    expected = [path for path in ORDER if path not in (*dropped, *unknown)]
    assert still_valid([*ORDER, "M3"], "M2", changed) == expected


def test_every_stage_of_a_run_is_known_to_the_branch(bench: Bench) -> None:
    stages = Manifest(bench.home / "clean").stages
    names = {path.partition("/")[2].partition(".")[0] for path in stages if "/" in path}
    assert names == MADE_FROM.keys() - {"judgement_pairs"}  # of Meta-Rewarding, which is off


def test_an_origin_is_read_from_the_last_at() -> None:
    assert Origin.parse("a@b/run@M2") == Origin(Path("a@b/run"), "M2")
