"""A stopped run says how to go on and leaves with the exit code that the signal has."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loop.stop import stoppable

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
        cwd=Path(__file__).parent.parent,
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
