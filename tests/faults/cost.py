"""`python -m faults.cost [flags of train.py]`: what share of a run goes into keeping it.

Counted: all time inside `loop.files` (writing, syncing, renaming, hashing) and the record, the
saves of a training to go on from, and the syncs of checkpoints and of `train.jsonl`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from dpo import descent
from llama import files as weight_files
from loop import files
from loop.command import run_command
from loop.manifest import Manifest
from seed.start import open_start
from train import SelfRewarding

COUNTED: tuple[tuple[Any, str], ...] = (
    *((files, name) for name in ("write", "move_in", "make_directory", "remove", "digests")),
    *((files, name) for name in ("jsonl_bytes", "json_bytes", "read_jsonl")),
    *((Manifest, name) for name in ("faults", "record", "forget")),
    (weight_files, "_sync"),
    (descent, "save_training"),
    (os, "fsync"),
)


class Clock:
    """Seconds inside some functions; a call within a call counts once."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._deep = 0.0, 0, 0

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted."""

        @wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            self._deep += 1
            try:
                return function(*arguments, **named)
            finally:
                self._deep -= 1
                if not self._deep:
                    self.seconds += time.perf_counter() - begun
                    self.calls += 1

        return counted


def main() -> int:
    """Runs into a directory that is thrown away, and tells."""
    clock = Clock()
    for place, name in COUNTED:
        setattr(place, name, clock.counting(getattr(place, name)))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as home:
        begun = time.perf_counter()
        code = run_command(open_start, SelfRewarding, ["--run", f"{home}/run", *sys.argv[1:]])
        whole = time.perf_counter() - begun
    print(
        f"{whole:.1f} s, of them {clock.seconds:.2f} s ({clock.seconds / whole:.2%}) for keeping "
        f"it, in {clock.calls} calls"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
