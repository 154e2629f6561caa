"""What the command line knows of the loop that it drives: what a run starts from, and that it
trains.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from loop.account import Prompts
from loop.models import Models
from loop.run import Run
from loop.settings import Settings


class Given(Protocol):
    """What a run starts from (`seed.start.Start`)."""

    @property
    def inputs(self) -> Mapping[str, Path]: ...

    @property
    def model(self) -> Path: ...

    @property
    def seed(self) -> Prompts: ...


class Trains(Protocol):
    """The loop itself."""

    def train(self) -> int: ...


G = TypeVar("G", bound=Given)
Open = Callable[[str | None, str | None], G]
Begin = Callable[[Run, Settings, G, Models], Trains]
