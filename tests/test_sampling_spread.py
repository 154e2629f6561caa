"""Requests over ranks and processes: the same samples, however they are dealt; and whoever makes
them may fail.
"""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from resource import RUSAGE_SELF, getrusage

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_sampling_engine import DECODING, MODEL, ragged, written
from tiny_llama import tiny_model

from llama.children import Child, keep_memory
from sampling import engine
from sampling.batch import Decoding, Sample
from sampling.engine import generate
from sampling.spread import Progress, Request, dearest_first, over_processes, over_ranks

MANY = 2**25  # floats: 32,768 pages, or 64 where the system gives huge ones


def named(parts: Sequence[Sequence[Request]]) -> Iterator[list[list[Sample]]]:
    """Samples that say whose they are."""
    for part in parts:
        yield [[Sample([*one.token_ids, k], True) for k in range(one.n)] for one in part]


class Dealt:
    """Some ranks' group, seen by one of them, whose peers do what it does."""

    def __init__(self, world_size: int, make: Callable) -> None:
        self.world_size, self.make = world_size, make
        self.shares: list[list] = []  # of each part, each rank's
        self.gathered = 0

    def slice(self, rows: list) -> list:
        self.shares.append([rows[rank :: self.world_size] for rank in range(self.world_size)])
        return self.shares[-1][0]

    def gather_rows(self, rows: list) -> list:
        [*others] = self.make(self.shares[self.gathered][1:])
        made, self.gathered = [rows, *others], self.gathered + 1
        return [made[i % self.world_size][i // self.world_size] for i in range(sum(map(len, made)))]


sizes = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 5)), max_size=20)


@given(sizes=sizes, ranks=st.integers(1, 5), most=st.integers(1, 20))
def test_ranks_have_about_as_much_to_do_and_the_order_is_the_requests(sizes, ranks, most) -> None:
    requests = [Request(f"r{i}", [i] * length, n) for i, (length, n) in enumerate(sizes)]
    parts = [requests[start : start + most] for start in range(0, len(requests), most)]
    group = Dealt(ranks, named)
    assert list(over_ranks(named, parts, 7, group)) == list(named(parts))
    for part, shares in zip(parts, group.shares, strict=True):
        costs = [sum(len(one.token_ids) + 7 * one.n for one in share) for share in shares]
        assert max(costs) - min(costs) <= max(len(one.token_ids) + 7 * one.n for one in part)


def test_the_dearest_come_first() -> None:
    requests = [Request("a", [1] * 9), Request("b", [1] * 5, 2), Request("c", [1] * 9)]
    assert dearest_first(requests, 10) == [1, 0, 2]
    assert dearest_first(requests, 1) == [0, 2, 1]


def test_samples_are_the_same_from_any_number_of_processes() -> None:
    requests, seen = ragged(30, n=3), []
    among = written(requests)
    for processes in (2, 3):
        assert written(requests, processes=processes, progress=seen.append) == among
        tokens = sum(len(s.token_ids) + s.finished for several in among.values() for s in several)
        assert seen[-1] == Progress(ready=90, running=0, tokens=tokens)
        assert max(at.running for at in seen) > 16  # more than one process has slots


def test_logps_and_refusals_come_out_of_processes_too() -> None:
    requests = [*ragged(6), Request("full", [5] * 256)]
    asked = replace(DECODING, logps=True)
    alone, dealt = written(requests, asked), written(requests, asked, processes=2)
    assert dealt["full"] == alone["full"] and dealt["full"][0].refused
    for request in requests[:-1]:
        [one], [other] = alone[request.id], dealt[request.id]
        assert replace(one, logps=None) == replace(other, logps=None)
        assert one.logps == pytest.approx(other.logps, abs=1e-5)  # other rows beside it


def test_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    many = ragged(400)
    assert engine._processes(MODEL, many, None) == 6  # 64 samples at least for each
    assert engine._processes(MODEL, ragged(3, n=400), None) == 3
    assert engine._processes(MODEL, many[:50], None) == 1
    assert engine._processes(MODEL, many, 1 << 20) == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert engine._processes(MODEL, many, None) == 1


def test_what_a_process_raises_is_raised() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[1].ffn.w2.weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        generate(model, ragged(8), Decoding(0.7), seed=0, processes=2)


def test_a_process_that_is_killed_is_told() -> None:
    def make(parts: Sequence[Sequence[Request]], tell: Callable) -> Iterator:
        yield from named(parts[:1])
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ChildProcessError, match="ended early, with exit code -9"):
        list(over_processes(make, [ragged(4), ragged(3)], 8, 2, lambda progress: None))


LEFT_ALONE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path[:0] = ["tests"]
from sampling.spread import Progress, Request, over_processes

def make(parts, tell):
    os.write(1, b"at work\\n")  # at once: `print` may write its line in two parts
    while True:
        tell(Progress(0, 1, 0))
        time.sleep(0.01)

def heard(progress):
    global heard
    os.write(1, b"heard\\n")  # Ctrl-C within a fork, in the hooks of libraries, is lost
    heard = lambda progress: None

requests = [Request("a", [1]), Request("b", [1])]
list(over_processes(make, [requests], 8, 2, lambda progress: heard(progress)))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEFT_ALONE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        try:
            assert parent.stdout
            lines = [parent.stdout.readline() for _ in range(3)]
            assert sorted(lines) == [b"at work\n", b"at work\n", b"heard\n"]
            parent.send_signal(number)
            assert parent.stdout.read() == b""  # to its end: nobody is left who could write to it
            assert parent.wait() == -number
        finally:
            parent.kill()  # or what failed above would wait for it


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep what they keep")
@pytest.mark.parametrize("kept", [True, False])
def test_a_process_that_keeps_its_memory_does_not_ask_for_it_again(kept: bool) -> None:
    def pages(channel: Connection) -> None:
        if kept:
            keep_memory()
        torch.ones(MANY)
        before = getrusage(RUSAGE_SELF).ru_minflt
        torch.ones(MANY * 3 // 4)  # as much again may miss the gap by the bytes that align it
        channel.send(getrusage(RUSAGE_SELF).ru_minflt - before)

    child = Child(pages, [], "")
    asked = child.hear()
    child.end()
    assert (asked < 32) == kept, asked
