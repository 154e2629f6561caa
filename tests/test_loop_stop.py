"""A stopped run says how to go on and leaves with the exit code that the signal has."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loop.command import run_command
from loop.stop import stoppable

ROOT = Path(__file__).parent.parent
PROGRAM = """
import time
from loop.stop import stoppable
with stoppable(print, "the same command goes on"):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)  # a signal just before a long sleep would be seen only after it
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_with_its_code_and_a_word(number, code):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said, complained = process.communicate(timeout=20)
    assert (process.returncode, said, complained) == (code, "the same command goes on\n", "")


def test_other_ends_are_left_alone_and_the_handlers_given_back():
    before = signal.getsignal(signal.SIGTERM)
    said = []
    with pytest.raises(SystemExit), stoppable(said.append, "go on"):
        assert signal.getsignal(signal.SIGTERM) != before
        raise SystemExit(1)
    with stoppable(said.append, "go on"):
        pass
    assert said == [] and signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_before_the_first_step_is_a_line_and_its_exit_code_too(tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert run_command(interrupted, interrupted, ["--run", str(tmp_path / "run")]) == 130
    said = "stopped; what is finished is kept: the same command goes on\n"
    assert capsys.readouterr().err == said


# train.py, where Ctrl-C is heard: what a shell runs in the background ignores it, these tests too
HEARING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path("train.py", run_name="__main__")
"""


def test_ctrl_c_while_inputs_are_hashed_does_not_wait_for_the_hash(tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    with open(model / "large.safetensors", "wb") as file:
        file.truncate(1 << 38)  # a hole: it takes no room, and minutes to hash
    with subprocess.Popen(
        [sys.executable, "-c", HEARING, "--preset", "smoke", "--model", model, "--run", run],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not run.exists() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(0.5)  # by now it hashes
            process.send_signal(signal.SIGINT)
            complained = process.communicate(timeout=15)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert complained == "stopped; what is finished is kept: the same command goes on\n"
