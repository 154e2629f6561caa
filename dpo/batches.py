"""Rows into steps, and steps into micro-batches with little padding. Knows no model and no loss.

Which items a step holds follows from (seed, step) and the data alone, whatever the ranks. An epoch
is a shuffle; it is walked in *windows* of several steps, and inside a window items of like length
travel together:
```
  shuffled window     7 3 9 1 8 2 6 4     lengths
  sorted, in groups   12 34 67 89
  groups shuffled     67 12 | 89 34       two steps of long and short items, neighbours alike
```
Then a step is sorted and cut where padding costs least (`cut`), and dealt to those who share it; or
nothing is padded (`packs`), and those who share it get as many tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import numpy as np

from dpo.fork import Ints
from dpo.lines import Line, MicroBatch, pack, pad

WINDOW = 32  # steps whose items are sorted together
GROUPS = 4  # groups of like length in a step
OVERHEAD = 128  # what one more micro-batch costs, in tokens: kernels must be launched

Item = TypeVar("Item")


def cut(lengths: Ints, budget: int, parts: int = 1, overhead: int = OVERHEAD) -> list[int]:
    """Where to cut ascending lengths into turns, whose rows are dealt to `parts`: the turns' ends.

    Minimises Σ (rows of a part · longest + overhead); a part of a turn has at most `budget` tokens,
    padding included, or is a single row. With one part:
    `best[j] = min over i < j of best[i] + (j - i) · length[j-1] + overhead`.
    """
    n = len(lengths)
    best, start_of = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for j in range(1, n + 1):
        longest = int(lengths[j - 1])
        first = max(0, j - max(1, budget // longest) * parts)
        rows = -(-np.arange(j - first, 0, -1) // parts)
        cost = best[first:j] + rows * longest
        choice = int(cost.argmin())
        start_of[j], best[j] = first + choice, cost[choice] + overhead
    ends = []
    while n:
        ends.append(n)
        n = int(start_of[n])
    return ends[::-1]


def micro_batches(lines: Sequence[Line], budget: int, parts: int = 1) -> list[list[Line]]:
    """A step's lines as micro-batches of at most `budget` tokens, in a number that `parts` divides.

    Part r of `parts` takes every parts-th from the r-th on. Lines are dealt like cards, the shorter
    ones first, so parts that go in step wait little. Fewer lines than parts leave some of them
    empty.
    """
    ordered = sorted(lines, key=lambda line: (len(line), line.index))
    ends = cut(np.array([len(line) for line in ordered]), budget, parts)
    turns = [range(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    return [
        [ordered[n] for n in turn if n % parts == part] for turn in turns for part in range(parts)
    ]


def packs(lines: Sequence[Line], budget: int, parts: int = 1) -> list[list[Line]]:
    """As `micro_batches`, for lines that need no padding: as few as the budget allows.

    The longest line comes first, each goes where the fewest tokens are: parts end at one time.
    """
    ordered = sorted(lines, key=lambda line: (-len(line), line.index))
    for turns in count(1):
        dealt: list[list[Line]] = [[] for _ in range(turns * parts)]
        tokens = [0] * len(dealt)
        for line in ordered:
            least = tokens.index(min(tokens))
            dealt[least].append(line)
            tokens[least] += len(line)
        if all(n <= budget or len(micro) == 1 for n, micro in zip(tokens, dealt)):
            break
    return dealt


@dataclass(frozen=True)
class Layout:
    """How a step's lines become micro-batches, and the lines of one a forward pass."""

    cut: Callable[[Sequence[Line], int, int], list[list[Line]]]
    lay: Callable[[Sequence[Line]], MicroBatch]


PADDED = Layout(micro_batches, pad)
PACKED = Layout(packs, pack)


class Dealer(Generic[Item]):
    """Deals the items of each step, as lines.

    Items are read a window at a time, when their step comes: a sequence may encode lazily.
    """

    def __init__(
        self, items: Sequence[Item], line: Callable[[Item, int], Line], batch_size: int, seed: int
    ) -> None:
        if len(items) == 0:
            raise ValueError("there is nothing to train on: not one row")
        self.items, self.line, self.batch_size, self.seed = items, line, batch_size, seed
        self.steps_per_epoch = -(-len(items) // batch_size)
        self._epoch: tuple[int, Ints] | None = None
        self._window: tuple[tuple[int, int], list[Line]] | None = None

    def step(self, step: int) -> list[Line]:
        """The lines of a step, from 0 on; an epoch has `steps_per_epoch`, of nearly one size."""
        epoch, within = divmod(step, self.steps_per_epoch)
        window = within // WINDOW
        if self._window is None or self._window[0] != (epoch, window):
            self._window = (epoch, window), self._deal(epoch, window)
        first = self._start(window * WINDOW)
        return self._window[1][self._start(within) - first : self._start(within + 1) - first]

    def _start(self, within: int) -> int:
        """Number of items before a step of an epoch."""
        return min(within, self.steps_per_epoch) * len(self.items) // self.steps_per_epoch

    def _deal(self, epoch: int, window: int) -> list[Line]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, shuffled(len(self.items), self.seed, epoch)
        chosen = self._epoch[1][self._start(window * WINDOW) : self._start((window + 1) * WINDOW)]
        lines = [self.line(self.items[int(i)], int(i)) for i in chosen]
        lines.sort(key=len)
        size = -(-self.batch_size // GROUPS)
        groups = [lines[a : a + size] for a in range(0, len(lines), size)]
        order = shuffled(len(groups), self.seed, epoch, window + 1)
        return [line for g in order for line in groups[g]]


def shuffled(n: int, *key: int) -> Ints:
    """A permutation of n that depends on the key alone.

    Sorts a counter-based generator's raw bits: a stream that numpy promises to keep, unlike that
    of `permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")
