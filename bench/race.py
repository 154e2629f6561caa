"""Who is faster: each runner's best of several runs, taken in turns. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """So many tokens or pairs in so many seconds."""

    count: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens or pairs a second."""
        return self.count / self.seconds


@dataclass(frozen=True)
class Race:
    """Ours against the best of the opponent's settings: equally many runs of both, in turns."""

    our_runs: Sequence[Run]
    their_runs: Sequence[Run]  # with the best setting
    setting: str
    tried: Mapping[str, Run]  # the first run of each of its settings

    @property
    def ours(self) -> Run:
        """Our best run."""
        return max(self.our_runs, key=lambda run: run.rate)

    @property
    def theirs(self) -> Run:
        """The opponent's."""
        return max(self.their_runs, key=lambda run: run.rate)

    @property
    def ratio(self) -> float:
        """How many times faster ours is, best run by best run."""
        return self.ours.rate / self.theirs.rate


def race(ours: Callable[[], Run], theirs: Mapping[str, Callable[[], Run]], rounds: int) -> Race:
    """The first round tries all of the opponent's settings; then ours and its best take turns.

    Turns, so that what else the machine does meets both alike.
    """
    our_runs, tried = [ours()], {setting: run() for setting, run in theirs.items()}
    best = max(tried, key=lambda setting: tried[setting].rate)
    their_runs = [tried[best]]
    for _ in range(rounds - 1):
        our_runs.append(ours())
        their_runs.append(theirs[best]())
    return Race(our_runs, their_runs, best, tried)
