"""Whatever stops a run or befalls its files, the same command brings it to the same end."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from small_loop import EVERYTHING, Killed, kept, small_loop

from loop import files
from loop.run import Run
from loop.status import Next, ReadRun

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fast_disk(monkeypatch):
    """For tests of hundreds of runs: nothing here pulls the plug, so why wait for the disk?"""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_killed_at_any_operation_it_ends_as_an_undisturbed_run(tmp_path, alone, hook, fast_disk):
    trace = []
    hook(lambda operation, path: trace.append((operation, path)))
    small_loop(tmp_path / "clean", alone)
    clean = kept(tmp_path / "clean")
    assert len(trace) > 40
    for n in range(len(trace)):
        directory, seen = tmp_path / str(n), iter(range(len(trace) + 1))

        def kill(operation, path, n=n, seen=seen):
            if next(seen) == n:
                raise Killed

        hook(kill)
        made = []
        with pytest.raises(Killed):
            small_loop(directory, alone, made)
        hook(lambda operation, path: None)
        small_loop(directory, alone, made)
        assert kept(directory) == clean, trace[n]
        assert made.count("M1") == 1, trace[n]  # what it was gone on from is there until the record


def test_of_what_is_no_more_nothing_is_gone_on_from(tmp_path, alone, hook):
    """Killed before M2 is recorded; then M1 comes out different."""

    def loop(weight):
        def checkpoint(unfinished):
            found.append((unfinished / "training.0.safetensors").exists())
            (unfinished / "training.0.safetensors").write_bytes(weight)
            (unfinished / "model").write_bytes(weight)

        found = []
        with Run.open(tmp_path / "run", {}, alone) as run:
            for name in ("M1", "M2"):
                run.directory(name, checkpoint, name)
        return found

    def kill(operation, path):
        if path.name == "manifest.json" and (tmp_path / "run/M2").exists():
            raise Killed

    hook(kill)
    with pytest.raises(Killed):
        loop(b"1")
    hook(lambda operation, path: None)
    assert (tmp_path / "run/M2/training.0.safetensors").exists()
    (tmp_path / "run/M1/model").write_bytes(b"damaged")
    assert loop(b"2") == [False, False]
    assert {path.name for path in (tmp_path / "run/M2").iterdir()} == {"model"}


def test_a_full_disk_at_any_operation_is_an_error_that_the_same_command_mends(
    tmp_path, alone, hook
):
    trace = []
    hook(lambda operation, path: trace.append((operation, path)))
    small_loop(tmp_path / "clean", alone)
    for n in range(0, len(trace), 3):
        directory, seen = tmp_path / str(n), iter(range(len(trace) + 1))

        def fail(operation, path, n=n, seen=seen):
            if next(seen) == n:
                raise OSError(28, "No space left on device")

        hook(fail)
        with pytest.raises(OSError, match=r"No space left on device: '.*"):
            small_loop(directory, alone)
        hook(lambda operation, path: None)
        small_loop(directory, alone)
        assert kept(directory) == kept(tmp_path / "clean"), trace[n]


def test_what_a_stage_wrote_is_synced_before_the_record_says_so(tmp_path, alone, hook):
    trace = []
    hook(lambda operation, path: trace.append((operation, path.relative_to(tmp_path.parent))))
    small_loop(tmp_path, alone)
    root = Path(tmp_path.name)
    renamed = trace.index(("replace", root / "M1"))
    recorded = trace.index(("replace", root / "manifest.json"))
    assert renamed < trace.index(("fsync", root), renamed) < recorded
    assert trace.index(("fsync", root / "M1.unfinished" / "model")) < renamed


def test_an_interrupted_stage_goes_on_from_its_last_unit(tmp_path, alone):
    done = []

    def respond(part):
        if part == [4, 5]:
            raise Killed
        done.append(part)
        return [{"n": n} for n in part]

    items = list(range(7))
    with Run.open(tmp_path, {}, alone) as run, pytest.raises(Killed):
        run.rows_in_units("r.jsonl", items, partial(map, respond), "r", unit=2)
    assert done == [[0, 1], [2, 3]] and not (tmp_path / "r.jsonl").exists()
    with Run.open(tmp_path, {}, alone) as run:
        each = partial(map, lambda part: done.append(part) or [{"n": n} for n in part])
        rows = run.rows_in_units("r.jsonl", items, each, "r", unit=2)
    assert done[2:] == [[4, 5], [6]] and rows == [{"n": n} for n in items]
    assert files.names_in(tmp_path) == [".lock", "config.json", "manifest.json", "r.jsonl"]


def test_units_of_another_size_are_not_mistaken_for_each_other(tmp_path, alone):
    def respond(part, last):
        if last in part:
            raise Killed
        return [{"n": n} for n in part]

    for unit, last in ((2, 3), (3, 7), (2, None)):
        each = partial(map, partial(respond, last=last))
        with Run.open(tmp_path, {}, alone) as run:
            if last is None:
                rows = run.rows_in_units("r", range(8), each, "r", unit=unit)
                assert rows == [{"n": n} for n in range(8)]
            else:
                with pytest.raises(Killed):
                    run.rows_in_units("r", range(8), each, "r", unit=unit)


def test_an_interrupted_stage_goes_on_from_its_last_round(tmp_path, alone, capsys):
    """Each round's rows build on those of the rounds before."""
    made = []

    def make(keep, last=None):
        rows = []
        for number in range(4):

            def write(number=number, rows=tuple(rows)):
                if number == last:
                    raise Killed
                made.append(number)
                return [{"n": sum(row["n"] for row in rows) + 1}]

            rows += keep(number, write)
        return rows, {"rounds": 4}

    with Run.open(tmp_path, {}, alone) as run, pytest.raises(Killed):
        run.rows_in_rounds("r.jsonl", partial(make, last=2), "writing")
    assert made == [0, 1] and not (tmp_path / "r.jsonl").exists()
    with pytest.raises(Next, match=r"writing, round 3 \(r.jsonl\)"):
        ReadRun(tmp_path).rows_in_rounds("r.jsonl", make, "writing")
    with Run.open(tmp_path, {}, alone) as run:
        rows = run.rows_in_rounds("r.jsonl", make, "writing")
        assert run.counts("r.jsonl") == {"rounds": 4} and run.stages("r.jsonl.units") == []
    assert made == [0, 1, 2, 3] and rows == [{"n": n} for n in (1, 2, 4, 8)]
    assert "writing, round 4: 0.0 s" in capsys.readouterr().out
    assert files.names_in(tmp_path) == [".lock", "config.json", "manifest.json", "r.jsonl"]


def test_what_is_made_of_all_units_finds_them_again(tmp_path, alone):
    """Interrupted there, no unit is made again; and the stage's counts are of what was made."""
    made = []

    def each(parts):
        for part in parts:
            made.append(part)
            yield [{"n": n} for n in part]

    def killed(rows):
        raise Killed

    def total(rows):
        return [{"sum": sum(row["n"] for row in rows)}], {"rows": len(rows)}

    items, how = list(range(5)), {"unit": 2}
    with Run.open(tmp_path, {}, alone) as run, pytest.raises(Killed):
        run.rows_in_units("r.jsonl", items, each, "r", finish=killed, **how)
    with pytest.raises(Next, match=r"^r \(r.jsonl\)$"):
        ReadRun(tmp_path).rows_in_units("r.jsonl", items, each, "r", finish=total, **how)
    for _ in range(2):
        with Run.open(tmp_path, {}, alone) as run:
            rows = run.rows_in_units("r.jsonl", items, each, "r", finish=total, **how)
            assert (rows, run.counts("r.jsonl")) == ([{"sum": 10}], {"rows": 5})
    assert made == [[0, 1], [2, 3], [4]]
    assert files.names_in(tmp_path) == [".lock", "config.json", "manifest.json", "r.jsonl"]


def test_a_unit_that_was_damaged_is_made_again_alone(tmp_path, alone, capsys):
    asked = []

    def each(parts, last=None):
        asked.append(list(map(list, parts)))
        for part in parts:
            if last in part:
                raise Killed
            yield [{"n": n} for n in part]

    with Run.open(tmp_path, {}, alone) as run, pytest.raises(Killed):
        run.rows_in_units("r", range(8), partial(each, last=6), "r", unit=2)
    broken = tmp_path / "r.units" / "2-4.jsonl"
    broken.write_bytes(b"{}\n")
    with Run.open(tmp_path, {}, alone) as run:
        rows = run.rows_in_units("r", range(8), each, "r", unit=2)
    assert rows == [{"n": n} for n in range(8)]
    assert asked == [[[0, 1], [2, 3], [4, 5], [6, 7]], [[2, 3], [6, 7]]]
    assert f"{broken}: damaged; it is made again" in capsys.readouterr().out


def test_an_unfinished_directory_keeps_what_training_goes_on_from(tmp_path, alone):
    def stops(unfinished):
        (unfinished / "step-200").write_text("state")
        raise Killed

    def goes_on(unfinished):
        assert (unfinished / "step-200").read_text() == "state"
        (unfinished / "step-200").rename(unfinished / "model")

    with Run.open(tmp_path, {}, alone) as run, pytest.raises(Killed):
        run.directory("M1", stops, "M1")
    with Run.open(tmp_path, {}, alone) as run:
        assert files.names_in(run.directory("M1", goes_on, "M1")) == ["model"]
        assert not (tmp_path / "M1.unfinished").exists()


def test_damage_at_any_byte_is_noticed_named_and_mended(tmp_path, alone, capsys, fast_disk):
    small_loop(tmp_path, alone)
    path = tmp_path / "M1" / "prompts.jsonl"
    good = path.read_bytes()
    broken = [good[:n] for n in range(0, len(good), 7)]  # truncated
    broken += [good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :] for n in range(0, len(good), 5)]
    for data in broken:
        path.write_bytes(data)
        capsys.readouterr()
        made = []
        small_loop(tmp_path, alone, made)
        assert (
            made == ["prompts"] and path.read_bytes() == good
        )  # the same rows: what follows stands
        assert f"{path}: damaged; it is made again" in capsys.readouterr().out
    path.unlink()
    small_loop(tmp_path, alone)
    assert (
        f"{path}: gone; it is made again" in capsys.readouterr().out and path.read_bytes() == good
    )


def test_a_damaged_checkpoint_is_made_again_and_its_neighbours_stay(tmp_path, alone, capsys):
    small_loop(tmp_path, alone)
    whole = kept(tmp_path)
    (tmp_path / "M1" / "model").write_bytes(b"v")
    made = []
    small_loop(tmp_path, alone, made)
    assert made == ["M1"] and kept(tmp_path) == whole
    assert f"{tmp_path / 'M1' / 'model'}: damaged" in capsys.readouterr().out


def test_a_stage_that_comes_out_different_has_all_that_followed_made_again(tmp_path, alone):
    small_loop(tmp_path, alone)
    (tmp_path / "M1" / "model").unlink()
    (tmp_path / "M2.unfinished").mkdir()
    made = []
    small_loop(tmp_path, alone, made, weight=b"another")
    assert made == EVERYTHING and not (tmp_path / "M2.unfinished").exists()
    small_loop(tmp_path, alone, made, weight=b"another")
    assert made == EVERYTHING


def test_a_damaged_record_or_config_is_refused_by_name(tmp_path, alone):
    small_loop(tmp_path, alone)
    for name in ("manifest.json", "config.json"):
        path = tmp_path / name
        good = path.read_bytes()
        for bad in (
            good[: len(good) // 2],
            b"[]",
            b"{}",
            b"\xff",
            good.replace(b'"size": 1', b'"size": 2'),
        ):
            if bad != good:
                path.write_bytes(bad)
                with pytest.raises(ValueError, match=f"{name}: damaged"):
                    small_loop(tmp_path, alone)
        path.write_bytes(good)
        small_loop(tmp_path, alone)


DIES = """
import itertools, os, sys
sys.path.insert(0, {tests!r})
from conftest import Alone
from pathlib import Path
from small_loop import files, small_loop
count = itertools.count()
files.before = lambda operation, path: next(count) == {n} and os._exit(137)
small_loop(Path({directory!r}), Alone())
"""


@pytest.mark.parametrize("n", [3, 17, 40])
def test_a_process_that_dies_is_taken_up_by_the_next(tmp_path, alone, n):
    code = DIES.format(tests=str(ROOT / "tests"), directory=str(tmp_path / "run"), n=n)
    dead = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert dead.returncode == 137
    small_loop(tmp_path / "run", alone)
    small_loop(tmp_path / "clean", alone)
    assert kept(tmp_path / "run") == kept(tmp_path / "clean")
