"""`python -m faults.soak [kills cuts errors random fuzz] [--part I/N]`: every fault, everywhere.

```
  kills    kill -9 at every operation of a run; the next run goes on      → the clean run's bytes
  cuts     a power cut at every operation, with each of four fates
  errors   from every operation on: disk full, I/O error; at one: a failed fsync
  random   SIGKILL from outside at random moments, again and again
  fuzz     files from outside, damaged at random (`faults.fuzz`)
```
`--part 2/5` does every fifth of them, from the second on. `make soak` does all, for some hours.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults import fuzz
from faults.driver import begin, differences, end, left, run_to_end, said
from faults.power import FATES, Disk
from faults.shim import Act, at_operation, die, fail, from_operation
from faults.world import make_world

KILLS = 300  # random ones
INPUTS = 20_000  # damaged files, for each reader


class Bench:
    """A world, what an undisturbed run of it leaves, and the operations that it takes."""

    def __init__(self, home: Path) -> None:
        self.home, self.world = home, make_world(home / "world")
        trace = home / "trace"
        assert run_to_end(self.world, home / "clean", act=_noting(trace)) == 0
        lines = trace.read_text().splitlines()
        self.trace = [
            (word, Path(path)) for word, _, path in (line.partition(" ") for line in lines)
        ]
        self.clean = left(home / "clean")

    def killed(self, n: int) -> str:
        """Killed at operation n, then run again: what is wrong with what is left; "" if nothing."""
        with self._directory() as run:
            code = run_to_end(self.world, run, act=at_operation(n, die))
            return self._wrong(code, 137, run)

    def cut(self, n: int, fate: str) -> str:
        """The power goes at operation n; what is left of the directory is taken up."""
        with self._directory() as run:
            after = run.with_name(f"{run.name}.after")
            code = run_to_end(self.world, run, act=cutting(n, fate, run, after))
            return self._wrong(code, 137, after)

    def failing(self, n: int, error: int, once: bool) -> str:
        """The system fails operation n, or all from n on; then it works again."""
        with self._directory() as run:
            act = (at_operation if once else from_operation)(n, fail(error))
            code, words = run_to_end(self.world, run, act=act), said(run).strip().split("\n")[-1]
            if code == 2 and not (os.strerror(error) in words and str(run) in words):
                return f"an error that does not say what failed where: {words}"
            return self._wrong(code, 2 if code else 0, run)  # some failures need not matter

    def harassed(self, seed: int, most: int) -> tuple[int, str]:
        """Killed from outside again and again, until a run gets through: (kills, what is wrong)."""
        draw, kills = random.Random(seed), 0
        with self._directory() as run:
            while kills < most:
                pid = begin(self.world, run)
                time.sleep(draw.uniform(0.02, 0.6))
                os.kill(pid, signal.SIGKILL)
                if (code := end(pid)) != -signal.SIGKILL:
                    return kills, self._wrong(code, 0, run)
                kills += 1
            return kills, self._wrong(0, 0, run)

    def _wrong(self, code: int, expected: int, run: Path) -> str:
        if code != expected:
            return f"exit code {code}, expected {expected}: {said(run)[-500:]}"
        if code := run_to_end(self.world, run):
            return f"the next run ended with {code}: {said(run)[-500:]}"
        odd = differences(left(run), self.clean)
        return f"not as in the clean run: {', '.join(odd)}" if odd else ""

    def _directory(self) -> tempfile.TemporaryDirectory:
        return _Run(dir=self.home)


class _Run(tempfile.TemporaryDirectory):
    """A place for a run, by its path."""

    def __enter__(self) -> Path:
        return Path(super().__enter__()) / "run"


def _noting(file: Path) -> Act:
    """Writes down each operation."""

    def act(operation: str, path: Path) -> None:
        with file.open("a") as stream:
            stream.write(f"{operation} {path}\n")

    return act


def cutting(n: int, fate: str, run: Path, after: Path) -> Act:
    """At operation n, leaves in `after` what a power cut may leave of `run`, and dies."""
    disk, seen = Disk(run), iter(range(sys.maxsize))

    def act(operation: str, path: Path) -> None:
        if next(seen) == n:
            disk.cut(fate, after, seed=n)
            os._exit(137)
        disk.act(operation, path)

    return act


def kills(bench: Bench) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each case: its name, and what does it."""
    for n, (operation, path) in enumerate(bench.trace):
        yield f"kill before {n}: {operation} {path.name}", lambda n=n: bench.killed(n)


def cuts(bench: Bench) -> Iterator[tuple[str, Callable[[], str]]]:
    """The fates take turns from one operation to the next."""
    for n, (operation, path) in enumerate(bench.trace):
        fate = FATES[n % len(FATES)]
        name = f"power cut before {n}: {operation} {path.name}, {fate}"
        yield name, lambda n=n, fate=fate: bench.cut(n, fate)


def errors(bench: Bench) -> Iterator[tuple[str, Callable[[], str]]]:
    """Disk full and I/O error in turns; and every fsync once."""
    for n, (operation, path) in enumerate(bench.trace):
        number = (errno.ENOSPC, errno.EIO)[n % 2]
        name = f"{os.strerror(number)} from {n} on: {operation} {path.name}"
        yield name, lambda n=n, number=number: bench.failing(n, number, once=False)
        if operation == "fsync":
            name = f"fsync {n} fails: {path.name}"
            yield name, lambda n=n: bench.failing(n, errno.EIO, once=True)


def randomly(bench: Bench, most: int) -> int:
    """At least so many random kills; returns how many went wrong."""
    done, runs, bad = 0, 0, 0
    while done < most:
        count, wrong = bench.harassed(seed=runs, most=most)
        done, runs, bad = done + count, runs + 1, bad + bool(wrong)
        if wrong:
            print(f"run {runs}: {wrong}")
    print(f"random: {done} kills in {runs} runs, {bad} wrong")
    return bad


def all_of(name: str, cases: list[tuple[str, Callable[[], str]]], part: str) -> int:
    """Does every case of that part; returns how many went wrong."""
    first, of = map(int, part.split("/"))
    mine, bad = cases[first - 1 :: of], 0
    for done, (title, case) in enumerate(mine, start=1):
        if done % 50 == 0:
            print(f"{name}: {done} of {len(mine)}, {bad} wrong", file=sys.stderr, flush=True)
        if wrong := case():
            bad += 1
            print(f"{title}: {wrong}", flush=True)
    print(f"{name}, part {part}: {len(mine)} of {len(cases)} cases, {bad} wrong")
    return bad


def main() -> int:
    """The command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m faults.soak")
    parser.add_argument("what", nargs="*", default=["kills", "cuts", "errors", "random", "fuzz"])
    parser.add_argument("--part", default="1/1", help="I/N: every N-th case, from the I-th on")
    parser.add_argument("--kills", type=int, default=KILLS, help="random ones (%(default)s)")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="a reader (%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        bench, bad = Bench(Path(home)), 0
        for what in given.what:
            started = time.monotonic()
            if what == "random":
                bad += randomly(bench, given.kills)
            elif what == "fuzz":
                bad += fuzz.soak(Path(home), given.inputs)
            else:
                cases = {"kills": kills, "cuts": cuts, "errors": errors}[what](bench)
                bad += all_of(what, list(cases), given.part)
            print(f"{time.monotonic() - started:.0f} s", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
