"""What a container may use of its machine: Linux's control groups, version 2 and version 1.

`docker run --cpus 2 --memory 4g`, and so Kubernetes, hides no processor and no memory: the machine
looks whole, but whoever uses more time than allowed waits, and whoever takes more memory is killed.
A limit may be set for the process's own group or for any around it; the strictest counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")


def fit_threads(root: Path = ROOT) -> None:
    """torch has a thread for each processor that it sees; from now on, for each that may be used at
    once. Where OMP_NUM_THREADS says how many, nothing happens.
    """
    allowed = processors(root)
    if allowed is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(allowed))))


def processors(root: Path = ROOT) -> float | None:
    """How many processors' time may be used; None if there is no limit."""
    quotas = []
    for group in _groups("cpu", root):
        files = [f"cpu.cfs_{name}_us" for name in ("quota", "period")]  # version 1
        numbers = _words(group / "cpu.max") or [n for file in files for n in _words(group / file)]
        if len(numbers) == 2 and all(map(str.isdecimal, numbers)):  # no limit is "max", or -1
            quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas, default=None)


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that may still be taken; None if there is no limit. Files that the system keeps in
    memory, and that it did not use of late, give way."""
    free = []
    for group in _groups("memory", root):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        taken = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        idle = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
        if taken and limit and limit[0].isdecimal():  # no limit is "max", or 2^63
            free.append(max(0, int(limit[0]) - int(taken[0]) + int(idle[1] if idle else 0)))
    return min(free, default=None)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Where limits of this process may stand: its group's directory, and those around it.

    In a container its own group often is the top, whatever path it has outside.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        here = top / controller if controllers else top
        own = here / path.strip("/")
        yield own
        yield from (group for group in own.parents if group.is_relative_to(here))


def _words(file: Path) -> list[str]:
    return _text(file).split()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""  # no Linux, no such controller, or one that may not be read
