"""Who is faster: each runner's best of several runs, taken in turns. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """Ours against the best of the opponent's settings; both best runs are out of equally many."""

    ours: Run
    theirs: Run
    setting: str  # the opponent's best
    tried: Mapping[str, Run]  # the first run of each of its settings

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
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
    return Race(_fastest(our_runs), _fastest(their_runs), best, tried)


def _fastest(runs: list[Run]) -> Run:
    return max(runs, key=lambda run: run.rate)
