"""How well scores order answers that people (or a program) ranked, and who wins head to head.

Knows no model and no text. A ranked set is one instruction's answers, `(scores, ranks)`: rank 0 is
the best, ranks are equal where no difference was seen, a score is None where the judge gave none.
Each metric is Σ sum / Σ count of a tally per set, and the set is the unit of resampling.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from judge.bootstrap import bootstrap_interval, paired_bootstrap, ratio
from judge.correlation import rho, tau

__all__ = [
    "bootstrap_interval",
    "difference",
    "exact_match",
    "five_best",
    "kendall",
    "outcome",
    "paired_bootstrap",
    "pairwise_accuracy",
    "spearman",
    "summary",
    "win_tie_loss",
]

Scores = Sequence[float | None]
Ranks = Sequence[int]
RankedSet = tuple[Scores, Ranks]
Tally = tuple[float, float]
Measure = Callable[[Scores, Ranks], Tally]
Choice = Literal["A", "B", "tie"]
Outcome = Literal["win", "tie", "loss"]


def pairwise_accuracy(sets: Sequence[RankedSet]) -> float | None:
    """How often, of two answers that people ranked apart, the better one has the higher score.

    An equal score does not agree, nor does a missing one: else a judge could gain by silence.
    """
    return _mean(_agreeing_pairs, sets)


def five_best(sets: Sequence[RankedSet], best: float = 5.0) -> float | None:
    """How often an answer scored 5, or what `best` the rubric has, is (or shares) its instruction's
    best. None without any.
    """
    return _mean(_measures(best)["five_best"], sets)


def exact_match(sets: Sequence[RankedSet]) -> float | None:
    """How often all pairs of an instruction's answers that people ranked apart agree."""
    return _mean(_whole_order, sets)


def spearman(sets: Sequence[RankedSet]) -> float | None:
    """Mean over instructions of Spearman's ρ between the scores and the human order.

    Unscored answers are left out (`summary` says how many are scored). A judge that tells no two
    answers of an instruction apart has ρ 0 there; where people tell none apart, the set is skipped.
    """
    return _mean(_spearman, sets)


def kendall(sets: Sequence[RankedSet]) -> float | None:
    """Mean over instructions of Kendall's τ-b; missing and equal scores as in `spearman`."""
    return _mean(_kendall, sets)


def summary(
    sets: Sequence[RankedSet], seed: int = 0, level: float = 0.95, best: float = 5.0
) -> dict[str, object]:
    """Every metric with its interval `…_ci: [low, high]`, and `scored`: the share that has a score.

    Both are None where a metric is not defined. best: the rubric's highest score, for `five_best`.
    """
    report: dict[str, object] = {}
    for name, tally in _measures(best).items():
        interval = bootstrap_interval(_tallies(tally, sets), seed, level)
        report[name] = _mean(tally, sets)
        report[f"{name}_ci"] = None if interval is None else list(interval)
    return report


def difference(
    first: Sequence[RankedSet],
    second: Sequence[RankedSet],
    seed: int = 0,
    level: float = 0.95,
    best: float = 5.0,
) -> dict[str, object]:
    """By how much the first judge's metrics exceed the second's on the same sets; as `summary`.

    Raises ValueError if the two lists are not of the same instructions (their ranks differ).
    """
    if [list(ranks) for _, ranks in first] != [list(ranks) for _, ranks in second]:
        raise ValueError(
            "the judges were given different ranked sets; compare them on the same ones"
        )
    report: dict[str, object] = {}
    for name, tally in _measures(best).items():
        found = paired_bootstrap(_tallies(tally, first), _tallies(tally, second), seed, level)
        report[name] = None if found is None else found[0]
        report[f"{name}_ci"] = None if found is None else list(found[1:])
    return report


def outcome(forward: Choice | None, backward: Choice | None) -> Outcome | None:
    """What two verdicts say of our answer, which was shown as A first and as B then.

    A win or a loss takes both: a judge that only prefers a place says tie. None if one is unread.
    """
    if forward is None or backward is None:
        return None
    if (forward, backward) == ("A", "B"):
        return "win"
    return "loss" if (forward, backward) == ("B", "A") else "tie"


def win_tie_loss(
    forward: Sequence[Choice | None], backward: Sequence[Choice | None]
) -> dict[str, int]:
    """Counts of `win`, `tie`, `loss` and `unread` over verdicts in both orders (see `outcome`)."""
    assert len(forward) == len(backward), (len(forward), len(backward))
    counts = Counter(outcome(*verdicts) or "unread" for verdicts in zip(forward, backward))
    return {name: counts[name] for name in ("win", "tie", "loss", "unread")}


def _mean(tally: Measure, sets: Sequence[RankedSet]) -> float | None:
    mean = ratio(_tallies(tally, sets))
    return None if math.isnan(mean) else mean


def _tallies(tally: Measure, sets: Sequence[RankedSet]) -> list[Tally]:
    for scores, ranks in sets:
        assert len(scores) == len(ranks), (scores, ranks)
    return [tally(scores, ranks) for scores, ranks in sets]


def _agreeing_pairs(scores: Scores, ranks: Ranks) -> Tally:
    places = range(len(ranks))
    ordered = [(i, j) for i in places for j in places if ranks[i] < ranks[j]]
    return sum(_above(scores[better], scores[worse]) for better, worse in ordered), len(ordered)


def _above(first: float | None, second: float | None) -> bool:
    return first is not None and second is not None and first > second


def _whole_order(scores: Scores, ranks: Ranks) -> Tally:
    agreeing, pairs = _agreeing_pairs(scores, ranks)
    return float(agreeing == pairs > 0), float(pairs > 0)


def _fives_that_are_best(scores: Scores, ranks: Ranks, best: float) -> Tally:
    fives = [rank for score, rank in zip(scores, ranks) if score == best]
    return sum(rank == min(ranks) for rank in fives), len(fives)


def _share_scored(scores: Scores, ranks: Ranks) -> Tally:
    return sum(score is not None for score in scores), len(ranks)


def _spearman(scores: Scores, ranks: Ranks) -> Tally:
    return _correlation(rho, scores, ranks)


def _kendall(scores: Scores, ranks: Ranks) -> Tally:
    return _correlation(tau, scores, ranks)


def _correlation(
    measure: Callable[[list[float], list[float]], float], scores: Scores, ranks: Ranks
) -> Tally:
    if len(set(ranks)) < 2:  # nothing to agree with
        return 0.0, 0.0
    scored = [(score, -rank) for score, rank in zip(scores, ranks) if score is not None]
    return measure([score for score, _ in scored], [worth for _, worth in scored]), 1.0


def _measures(best: float) -> dict[str, Measure]:
    return {
        "pairwise_accuracy": _agreeing_pairs,
        "five_best": partial(_fives_that_are_best, best=best),
        "exact_match": _whole_order,
        "spearman": _spearman,
        "kendall": _kendall,
        "scored": _share_scored,
    }
