"""A run reads what is finished, refuses what is another run, and is one for all its ranks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from small_loop import EVERYTHING, SETTINGS, kept, never, small_loop

from loop import files
from loop.run import Run

ROOT = Path(__file__).parent.parent


def test_a_finished_run_is_read_and_not_made_again(tmp_path, alone):
    made = []
    first = small_loop(tmp_path, alone, made)
    assert made == EVERYTHING
    assert small_loop(tmp_path, alone, made) == first and made == EVERYTHING
    assert [row["id"] for row in first[1]] == [f"p{n}/{k}" for n in range(5) for k in range(2)]
    assert first[3] == {"steps": 3}


def test_rows_are_the_same_whether_made_or_read(tmp_path, alone):
    with Run.open(tmp_path, {}, alone) as run:
        made = run.rows("a.jsonl", lambda: [{"pair": (1, 2.5)}], "a")
        assert made == run.rows("a.jsonl", never, "a") == [{"pair": [1, 2.5]}]
        with pytest.raises(ValueError, match="JSON"):
            run.rows("b.jsonl", lambda: [{"score": float("nan")}], "b")


def test_seconds_and_counts_outlive_the_process(tmp_path, alone):
    with Run.open(tmp_path, {}, alone) as run:
        run.rows("a.jsonl", lambda: time.sleep(0.03) or ([{}], {"ties": 4}), "a")
    with Run.open(tmp_path, {}, alone) as run:
        assert run.counts("a.jsonl") == {"ties": 4} and 0.03 <= run.seconds("a.jsonl") < 3
        units = run.rows_in_units(
            "b.jsonl", [1, 2], partial(map, lambda part: time.sleep(0.03) or []), "b", unit=1
        )
        assert units == [] and run.seconds("b.jsonl") >= 0.06


def test_a_run_in_which_nothing_was_made_takes_other_settings(tmp_path, alone):
    Run.open(tmp_path, SETTINGS, alone).close()
    Run.open(tmp_path, {"seed": 1}, alone, inputs={"here": ROOT / "setup.py"}).close()
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert config["settings"] == {"seed": 1} and set(config["inputs"]) == {"here"}
    (tmp_path / "M1.part").mkdir()  # whatever was begun: it belongs to these settings
    with pytest.raises(ValueError, match="other settings"):
        Run.open(tmp_path, SETTINGS, alone)


def test_a_training_that_failed_before_its_first_save_leaves_the_settings_free(tmp_path, alone):
    unfinished = tmp_path / "M1.unfinished"
    begun = unfinished / "train.jsonl"

    def fails(out: Path) -> None:
        (out / "train.jsonl").write_text("{}")
        raise ValueError("ift.jsonl:3: too long")

    for number in range(2):  # mended, and run again
        inputs = {"here": ROOT / ("setup.py", "Makefile")[number]}
        with Run.open(tmp_path, {"seed": number}, alone, inputs=inputs) as run:
            assert not unfinished.exists()
            with pytest.raises(ValueError, match="too long"):
                run.directory("M1", fails, "M1")
    Run.open(tmp_path, {"seed": 1}, alone, inputs=inputs).close()
    assert begun.exists()  # the same run: nothing is touched
    (unfinished / "training.1.safetensors").write_bytes(b"frozen")
    with pytest.raises(ValueError, match="other settings"):
        Run.open(tmp_path, SETTINGS, alone)
    assert begun.exists()


def test_other_settings_are_refused_with_the_difference_and_a_remedy(tmp_path, alone):
    small_loop(tmp_path, alone)
    other = {"seed": 1, "sft": {"epochs": 1.0, "sizes": (1, 3), "clip": 2}}
    with pytest.raises(ValueError) as refusal:
        small_loop(tmp_path, alone, settings=other)
    lines = str(refusal.value).splitlines()
    assert lines[1:4] == [
        "  seed: 0 → 1",
        "  sft.sizes: [1, 2] → [1, 3]",
        "  sft.clip: (not there) → 2",
    ]
    assert "--run NEW" in lines[4]


def test_a_setting_that_may_change_changes(tmp_path, alone):
    small_loop(tmp_path, alone)
    small_loop(tmp_path, alone, settings=SETTINGS | {"seed": 5}, may_change=["seed"])
    assert json.loads((tmp_path / "config.json").read_bytes())["settings"]["seed"] == 5
    small_loop(tmp_path, alone, settings=SETTINGS | {"seed": 5})


def test_an_input_is_what_it_holds_not_where_it_lies(tmp_path, alone):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "model").write_bytes(b"1")
    small_loop(tmp_path / "run", alone, inputs={"model": here})
    here.rename(there)
    (there / ".DS_Store").write_bytes(b"hidden")
    small_loop(tmp_path / "run", alone, inputs={"model": there})
    (there / "sub" / "model").write_bytes(b"2")
    with pytest.raises(ValueError, match=r'contents of model: "\w{12}" → "\w{12}"'):
        small_loop(tmp_path / "run", alone, inputs={"model": there})
    with pytest.raises(ValueError, match="nowhere: no such file or directory; mend the flag"):
        small_loop(tmp_path / "run", alone, inputs={"model": tmp_path / "nowhere"})


def test_other_versions_are_said_but_not_refused(tmp_path, alone, capsys):
    small_loop(tmp_path, alone)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["versions"]["torch"] = "1.0"
    (tmp_path / "config.json").write_bytes(files.json_bytes(config))
    small_loop(tmp_path, alone)
    assert "torch was 1.0 when this run began" in capsys.readouterr().out


def test_a_directory_of_something_else_is_left_alone(tmp_path, alone):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds 'thesis.txt' but no config.json.*--run NEW"):
        Run.open(tmp_path, {}, alone)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert files.names_in(tmp_path) == ["thesis.txt"]  # no lock either
    with pytest.raises(ValueError, match="thesis.txt: expected a directory"):
        Run.open(tmp_path / "thesis.txt", {}, alone)


def test_a_published_file_is_written_anew(tmp_path, alone):
    with Run.open(tmp_path, {}, alone) as run:
        run.publish("report.json", b"1")
        run.publish("report.json", b"2")
    assert (tmp_path / "report.json").read_bytes() == b"2"


OWNER = """
import sys, time
sys.path.insert(0, {root!r})
from conftest import Alone
from loop.run import Run
run = Run.open({directory!r}, {{}}, Alone())
print("mine", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_at_once_and_a_dead_owner_holds_nothing(tmp_path, alone):
    code = OWNER.format(root=str(ROOT / "tests"), directory=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout.readline() == "mine\n"
            started = time.monotonic()
            with pytest.raises(ValueError, match=f"process {owner.pid}.*--run NEW"):
                Run.open(tmp_path, {}, alone)
            assert time.monotonic() - started < 1
        finally:
            os.kill(owner.pid, signal.SIGKILL)
    Run.open(tmp_path, {}, alone).close()


class Threads:
    """A group whose ranks are threads of this process."""

    def __init__(self, rank, meeting, box):
        self.is_main, self.meeting, self.box = rank == 0, meeting, box

    def barrier(self):
        self.meeting.wait(timeout=20)

    def broadcast_object(self, value):
        if self.is_main:
            self.box[:] = [value]
        self.barrier()
        heard = self.box[0]
        self.barrier()
        return heard


def on_ranks(count, work):
    """What `work(group)` returned or raised on each rank."""
    meeting, box, results = threading.Barrier(count), [], [None] * count

    def enter(rank):
        try:
            results[rank] = work(Threads(rank, meeting, box))
        except Exception as error:
            results[rank] = error

    ranks = [threading.Thread(target=enter, args=(rank,)) for rank in range(count)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    return results


def test_all_ranks_make_one_writes_and_all_read_the_same(tmp_path, alone):
    made = []
    first, second, third = on_ranks(3, lambda group: small_loop(tmp_path / "three", group, made))
    assert first == second == third == small_loop(tmp_path / "three", alone, made)
    assert sorted(map(str, made)) == sorted(map(str, EVERYTHING * 3))
    small_loop(tmp_path / "one", alone)
    assert kept(tmp_path / "three") == kept(tmp_path / "one")  # whatever the number of ranks
    assert on_ranks(2, lambda group: small_loop(tmp_path / "one", group, [])) == [first, first]


def test_what_fails_on_the_main_rank_fails_on_all(tmp_path, hook):
    def no_room(operation, path):
        if path.name == "prompts.jsonl":
            raise OSError(28, "No space left on device")

    hook(no_room)
    main, other = on_ranks(2, lambda group: small_loop(tmp_path, group))
    assert isinstance(main, OSError)
    assert isinstance(other, RuntimeError) and "No space left on device" in str(other)
    hook(lambda operation, path: None)
    main, other = on_ranks(2, lambda group: small_loop(tmp_path, group, settings={}))
    assert type(main) is type(other) is ValueError and "seed" in str(other)
