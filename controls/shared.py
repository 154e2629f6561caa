"""A run as one arm of several sees it. Knows no model."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loop.rows import Row
from loop.run import Finish, Keep, Run

Made = Sequence[Mapping[str, Any]]


class Shared(Run):
    """The stages of M1 that `own` names lie in the arm's own directory; the rest of M1 is shared.

    Everything else goes to the run as it is.
    """

    def __init__(self, run: Run, label: str, own: Collection[str]) -> None:
        self.run, self.label, self.own = run, label, set(own)
        if "judgements.jsonl" in own:  # what is told of them
            self.own.add("own_scores.json")
        self.root, self.group = run.root, run.group

    def place(self, path: str) -> str:
        """Where the stage lies in the run."""
        model, _, stage = path.partition("/")
        return f"{self.label}/{path}" if model == "M1" and stage in self.own else path

    def rows(
        self, path: str, make: Callable[[], Made | tuple[Made, Row]], description: str
    ) -> list[Row]:
        """As `Run.rows`."""
        return self.run.rows(self.place(path), make, f"{self.label}: {description}")

    def rows_in_rounds(
        self, path: str, make: Callable[[Keep], Made | tuple[Made, Row]], description: str
    ) -> list[Row]:
        """As `Run.rows_in_rounds`."""
        title = f"{self.label}: {description}"
        return self.run.rows_in_rounds(self.place(path), make, title)

    def rows_in_units(
        self,
        path: str,
        items: Sequence[Any],
        make: Callable[[list[Sequence[Any]]], Iterable[Made]],
        description: str,
        *,
        unit: int,
        finish: Finish | None = None,
    ) -> list[Row]:
        """As `Run.rows_in_units`."""
        title, place = f"{self.label}: {description}", self.place(path)
        return self.run.rows_in_units(place, items, make, title, unit=unit, finish=finish)

    def json(self, path: str, make: Callable[[], Mapping[str, Any]], description: str) -> Row:
        """As `Run.json`."""
        return self.run.json(self.place(path), make, f"{self.label}: {description}")

    def directory(self, path: str, make: Callable[[Path], Row | None], description: str) -> Path:
        """As `Run.directory`."""
        return self.run.directory(self.place(path), make, f"{self.label}: {description}")

    def has(self, path: str) -> bool:
        """As `Run.has`."""
        return self.run.has(self.place(path))

    def read(self, path: str) -> bytes:
        """As `Run.read`."""
        return self.run.read(self.place(path))

    def counts(self, path: str) -> Row:
        """As `Run.counts`."""
        return self.run.counts(self.place(path))

    def seconds(self, path: str) -> float:
        """As `Run.seconds`."""
        return self.run.seconds(self.place(path))

    def stages(self, directory: str) -> list[str]:
        """As `Run.stages`."""
        return self.run.stages(directory)

    def say(self, line: str) -> None:
        """As `Run.say`."""
        self.run.say(line)
