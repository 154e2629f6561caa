"""Tells where a run stands, without starting anything and without a lock: also while it runs.

What comes next is found by walking through the loop itself, with a run that is only read: the first
thing that is not there ends the walk. Knows no step of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llama.parallel import current
from loop import identity, lock
from loop.driven import Begin, G, Open
from loop.manifest import Manifest
from loop.models import Models
from loop.options import build
from loop.rows import Row
from loop.run import Finish, Keep, Rows, Run
from loop.settings import Settings

T = TypeVar("T")
UNITS = ".units/"  # between a stage and its parts, in their paths


class Next(Exception):
    """What a run would do next; raised instead of doing it."""


class ReadRun(Run):
    """A run directory that is only read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, current())
        self._stages = Manifest(root).stages

    def rows_in_rounds(
        self, path: str, make: Callable[[Keep], Rows | tuple[Rows, Row]], description: str
    ) -> list[Row]:
        """The rows, if all are there; else raises Next, naming the round."""
        if path not in self._stages:
            done = self._parts_of(path)
            raise Next(f"{description}{f', round {done + 1}' if done else ''} ({path})")
        return super().rows_in_rounds(path, make, description)

    def rows_in_units(
        self,
        path: str,
        items: Sequence[T],
        make: Callable[[list[Sequence[T]]], Iterable[Rows]],
        description: str,
        *,
        unit: int,
        finish: Finish | None = None,
    ) -> list[Row]:
        """The rows, if all are there; else raises Next, naming the part."""
        if path not in self._stages:
            done, parts = self._parts_of(path), -(-len(items) // unit)
            part = f", part {done + 1} of {parts}" if 0 < done < parts else ""
            raise Next(f"{description}{part} ({path})")
        return super().rows_in_units(path, items, make, description, unit=unit, finish=finish)

    def _find(self, path: str, description: str) -> bytes:
        full = self.root / path
        if path not in self._stages or not full.exists():
            raise Next(f"{description} ({path})")
        return full.read_bytes() if full.is_file() else b""

    def _parts_of(self, path: str) -> int:
        return sum(name.startswith(f"{path}{UNITS}") for name in self._stages)

    def _drop_units(self, folder: str) -> dict[str, Row]:
        return self._stages


def standing(open_start: Open[G], begin: Begin[G], root: Path) -> list[str]:
    """Lines that say what is done, how long it took, what comes next, and who is at it.

    Raises ValueError where there is no run, or its record is damaged.
    """
    if not (root / identity.CONFIG).is_file():
        raise ValueError(f"{root}: no run lies there (no {identity.CONFIG}); --run says which")
    config, stages = identity.read(root / identity.CONFIG), Manifest(root).stages
    whole = {path: entry for path, entry in stages.items() if UNITS not in path}
    seconds = sum(entry["seconds"] for entry in whole.values())
    lines = [f"{root}: {len(whole)} stages done, {seconds:.0f} s"]
    lines += [f"  {_line(name, whole)}" for name in whole if "/" not in name]
    lines += [_unfinished(path) for path in sorted(root.glob("*.unfinished"))]
    process = lock.owner(root)
    at_it = "nobody here is at it" if process is None else f"process {process} is at it"
    return [*lines, f"next: {_next(open_start, begin, root, config, stages)}", at_it]


def _line(name: str, stages: Mapping[str, Row]) -> str:
    """A model, and what was made with it, each with its seconds."""
    own = {"training": stages[name]["seconds"]} | {
        path.removeprefix(f"{name}/").partition(".")[0]: entry["seconds"]
        for path, entry in stages.items()
        if path.startswith(f"{name}/")
    }
    return f"{name}: " + " · ".join(f"{stage} {seconds:.1f} s" for stage, seconds in own.items())


def _unfinished(path: Path) -> str:
    records = path / "train.jsonl"
    steps = records.read_bytes().count(b"\n") if records.exists() else 0
    return f"  {path.stem}: begun, {steps} training steps taken"


def _next(
    open_start: Open[G], begin: Begin[G], root: Path, config: Row, stages: Mapping[str, Row]
) -> str:
    """What the loop would do now, in its own words."""
    try:
        places = {name: entry["path"] for name, entry in config["inputs"].items()}
        usual = {name: str(path) for name, path in open_start(None, None).inputs.items()}
        model, seed = (
            None if places.get(name) == usual[name] else places.get(name)
            for name in ("model", "seed")
        )
        given, settings = open_start(model, seed), _settings(config, stages)
        run = ReadRun(root)
        begin(run, settings, given, Models(run, settings, current())).train()
    except Next as step:
        return str(step)
    except (ValueError, OSError) as error:
        return f"nothing; it would stop here: {error}"
    return "nothing, it is complete"


def _settings(config: Row, stages: Mapping[str, Row]) -> Settings:
    """Those of the run; of the machine only the size of units shows, by the names of some."""
    tree = _spelled(config["settings"])
    for path in stages:
        first, dash, last = path.partition(UNITS)[2].removesuffix(".jsonl").partition("-")
        if dash:
            tree["machine"] = {"unit": int(last) - int(first)}
    return build([(identity.CONFIG, tree)])


def _spelled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """As a TOML file would say it, which has no null."""
    return {
        key: _spelled(value) if isinstance(value, dict) else "none" if value is None else value
        for key, value in tree.items()
    }
