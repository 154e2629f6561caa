"""What keeping a run costs.

```
python -m faults.cost [flags of train.py]          the share of a run that goes into keeping it
python -m faults.cost units [flags of train.py]    what a finished run's sampling loses by units
```
Counted as keeping: all time inside `loop.files` (writing, syncing, renaming, hashing) and the
record, the saves of a training to go on from, and the syncs of checkpoints and of `train.jsonl`.
For the units each stage that is cut into several is sampled anew, in turns in units and in one, and
nothing is written.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any

from dpo import descent
from llama import files as weight_files
from llama.parallel import current
from loop import files
from loop.command import run_command
from loop.manifest import Manifest
from loop.models import Models
from loop.options import parse_arguments
from loop.status import ReadRun
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


TURNS = 4  # of each way


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


class Cut(ReadRun):
    """A finished run whose stages in units are sampled anew, in units and in one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seconds_of: dict[str, dict[str, list[float]]] = {}

    def rows_in_units(
        self,
        path: str,
        items: Sequence[Any],
        make: Any,
        description: str,
        *,
        unit: int,
        finish: Any = None,
    ) -> list[Any]:
        """The rows, and a line that tells the seconds."""
        units = [items[start : start + unit] for start in range(0, len(items), unit)]
        kept = self.rows(path, list, description)
        if finish or len(units) == 1:
            why = "not what its units hold" if finish else "one unit"
            print(f"{path}: {len(items)} items, {why}", flush=True)
            return kept
        ways = {
            "in units": lambda: list(chain(*make(units))),
            "in one": lambda: list(chain(*make([items]))),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        list(make([items[:1]]))  # loads the model
        for turn in range(TURNS):
            for name in list(ways)[:: 1 if turn % 2 else -1]:  # 1 2, 2 1, 1 2, …
                begun = _worked()
                assert ways[name]() == kept
                seconds[name].append(_worked() - begun)
        self.seconds_of[path] = seconds
        told = "; ".join(f"{name} {' '.join(f'{s:.2f}' for s in t)}" for name, t in seconds.items())
        print(f"{path}: {len(items)} items, {len(units)} units: {told}", flush=True)
        return kept


def _worked() -> float:
    """Seconds of processors, children's too: others on the machine count less than by the clock."""
    return sum(os.times()[:4])


def cut_into_units(flags: Sequence[str]) -> int:
    """What sampling loses by being cut into units, in seconds of processors; and what share of the
    run the stages that are cut are, by the clock.
    """
    settings, given = parse_arguments(flags), open_start(None, None)
    run = Cut(Path(settings.run))
    SelfRewarding(run, settings, given, Models(run, settings, current())).train()
    least = [sum(min(t[name]) for t in run.seconds_of.values()) for name in ("in units", "in one")]
    stages = Manifest(run.root).stages
    cut, whole = (sum(stages[p]["seconds"] for p in paths) for paths in (run.seconds_of, stages))
    print(
        f"in units {least[0]:.2f} s, in one {least[1]:.2f} s: {least[0] / least[1] - 1:.1%} more, "
        f"in stages that are {cut / whole:.0%} of the run"
    )
    return 0


def main() -> int:
    """Either of the two; by itself a run into a directory that is thrown away."""
    if sys.argv[1:2] == ["units"]:
        return cut_into_units(sys.argv[2:])
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
