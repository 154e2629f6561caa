"""Practising to judge: a model judges what people ranked, and learns what orders it as they did.

As the paper makes its EFT data once, by an SFT baseline, so here every M_t may. Knows no model: who
judges comes in as a callable.
"""

from collections.abc import Callable, Iterable, Sequence

from judge import make_eft, ranked_items
from loop.rows import Row, Rows
from loop.run import Run
from loop.settings import Settings

Ask = Callable[[Sequence[Sequence[Row]], int], Iterable[Rows]]  # of parts, k judgements of each


class Practice:
    """The sets to practise on. Raises ValueError if there are none and there should be."""

    def __init__(self, run: Run, settings: Settings, sets: Rows) -> None:
        self.run, self.how, self.sets = run, settings.judging, sets
        self.unit = settings.machine.unit
        if self.how.practice and not sets:
            raise ValueError("no eft_ranked.jsonl to practise on: add it, or judging.practice=0")

    def rows(self, t: int, name: str, ask: Ask, seed: int) -> tuple[Rows, Rows]:
        """EFT rows and all judgements, as stages of `name`; the baseline's, t = 0, are what M1 is
        taught to judge with. None of either where nobody practises.
        """
        how, title = self.how, f"{name}: practising to judge"
        file, k, most = ("practice", how.practice, None) if t else ("eft", how.k, how.eft_rows)
        if not k:
            return [], []
        judged = self.run.rows_in_units(
            f"{name}/{file}_judgements.jsonl",
            ranked_items(self.sets),
            lambda parts: ask(parts, k),
            title,
            unit=self.unit,
        )
        agreeing = self.run.rows(
            f"{name}/{file}.jsonl",
            lambda: make_eft(self.sets, judged, seed=seed, most=most),
            f"{title}, what agrees with people",
        )
        return agreeing, judged
