"""Metrics against brute force and scipy on random lists with ties, and intervals against theory."""

import math
import random
import statistics
from itertools import chain

import numpy as np
import pytest
import scipy.stats

from judge import metrics
from judge.correlation import rho, tau

PERFECT = ([5, 3, 1], [0, 1, 2])
REVERSED = ([1, 3, 5], [0, 1, 2])


def random_sets(seed: int, missing: float = 0.1) -> list[metrics.RankedSet]:
    draw = random.Random(seed)
    sets = []
    for _ in range(draw.randint(1, 8)):
        ranks = [draw.randint(0, 3) for _ in range(draw.randint(1, 6))]
        scores = [None if draw.random() < missing else draw.randint(0, 10) / 2 for _ in ranks]
        sets.append((scores, ranks))
    return sets


def brute_pairs(scores, ranks) -> list[bool]:
    found = []
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            if ranks[i] == ranks[j]:
                continue
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            known = scores[better] is not None and scores[worse] is not None
            found.append(known and scores[better] > scores[worse])
    return found


def mean_or_none(values: list) -> float | None:
    return statistics.fmean(values) if values else None


@pytest.mark.parametrize("seed", range(60))
def test_metrics_against_brute_force(seed: int) -> None:
    sets = random_sets(seed)
    pairs = [brute_pairs(*ranked) for ranked in sets]
    fives = [
        rank == min(ranks) for scores, ranks in sets for s, rank in zip(scores, ranks) if s == 5
    ]
    assert metrics.pairwise_accuracy(sets) == pytest.approx(mean_or_none(list(chain(*pairs))))
    assert metrics.exact_match(sets) == pytest.approx(mean_or_none([all(p) for p in pairs if p]))
    assert metrics.five_best(sets) == pytest.approx(mean_or_none(fives))


@pytest.mark.parametrize("seed", range(60))
def test_correlations_against_scipy(seed: int) -> None:
    sets = random_sets(seed)
    expected: dict[str, list[float]] = {"spearman": [], "kendall": []}
    for scores, ranks in sets:
        if len(set(ranks)) < 2:
            continue
        known = [(s, -r) for s, r in zip(scores, ranks) if s is not None]
        x, y = [s for s, _ in known], [w for _, w in known]
        told = len(set(x)) > 1 and len(set(y)) > 1
        expected["spearman"].append(scipy.stats.spearmanr(x, y).statistic if told else 0.0)
        expected["kendall"].append(scipy.stats.kendalltau(x, y).statistic if told else 0.0)
    assert metrics.spearman(sets) == pytest.approx(mean_or_none(expected["spearman"]))
    assert metrics.kendall(sets) == pytest.approx(mean_or_none(expected["kendall"]))


def test_correlations_of_long_lists_with_ties() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        x, y = draw.integers(0, 6, size=(2, 25)).tolist()
        assert rho(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert tau(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic)


def test_perfect_and_reversed_judges() -> None:
    for measure in (metrics.pairwise_accuracy, metrics.exact_match):
        assert (measure([PERFECT]), measure([REVERSED])) == (1, 0)
    for measure in (metrics.spearman, metrics.kendall):
        assert (measure([PERFECT]), measure([REVERSED])) == (pytest.approx(1), pytest.approx(-1))
    assert (metrics.five_best([PERFECT]), metrics.five_best([REVERSED])) == (1, 0)


def test_the_best_score_is_that_of_the_rubric() -> None:
    perfect, reversed_ = ([10, 5, 1], [0, 1, 2]), ([1, 5, 10], [0, 1, 2])
    assert metrics.five_best([perfect]) == 0  # as if 5 were the best
    assert metrics.five_best([perfect], best=10) == 1
    assert metrics.five_best([reversed_], best=10) == 0
    report = metrics.summary([perfect] * 3 + [reversed_], best=10)
    assert report["five_best"] == 3 / 4 and report["five_best_ci"][0] < 3 / 4
    others = metrics.summary([perfect] * 3 + [reversed_])
    assert {name for name in report if report[name] != others[name]} == {
        "five_best",
        "five_best_ci",
    }
    gain = metrics.difference([perfect] * 4, [reversed_] * 4, best=10)
    assert (gain["five_best"], gain["five_best_ci"]) == (1, [1, 1])


def test_pairs_are_pooled_not_averaged_by_instruction() -> None:
    assert metrics.pairwise_accuracy([PERFECT, ([1, 2], [0, 1])]) == 3 / 4  # not (1 + 0) / 2


def test_silence_and_ties_gain_nothing() -> None:
    assert metrics.pairwise_accuracy([([5, None, None], [0, 1, 2])]) == 0
    assert metrics.pairwise_accuracy([([4, 4, 4], [0, 1, 2])]) == 0
    assert metrics.exact_match([([5, 3, None], [0, 1, 2])]) == 0
    assert metrics.spearman([([4, 4, 4], [0, 1, 2])]) == 0


def test_what_is_not_defined_is_none() -> None:
    for sets in ([], [([5, 3], [0, 0])]):
        assert metrics.pairwise_accuracy(sets) is None
        assert metrics.exact_match(sets) is None
        assert metrics.spearman(sets) is None
        assert metrics.kendall(sets) is None
    assert metrics.five_best([([4, 3], [0, 1])]) is None


def test_summary_has_every_metric_with_its_interval() -> None:
    sets = [PERFECT] * 30 + [REVERSED] * 10
    report = metrics.summary(sets, seed=3)
    assert report == metrics.summary(sets, seed=3)
    for name in ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall"):
        low, high = report[f"{name}_ci"]
        assert low < report[name] < high
    assert (report["scored"], report["scored_ci"]) == (1, [1, 1])
    empty = metrics.summary([])
    assert set(empty) == set(report) and set(empty.values()) == {None}


def test_difference_of_judges_on_the_same_sets() -> None:
    draw = random.Random(0)
    worse = [PERFECT if draw.random() < 0.5 else REVERSED for _ in range(100)]
    better = [PERFECT if draw.random() < 0.3 else ranked for ranked in worse]
    report = metrics.difference(better, worse)
    gain = metrics.pairwise_accuracy(better) - metrics.pairwise_accuracy(worse)
    assert report["pairwise_accuracy"] == pytest.approx(gain)
    low, high = report["pairwise_accuracy_ci"]
    assert 0 < low < gain < high
    # Paired, it is narrower than the difference of two independent means would be.
    own = [metrics.summary(sets)["pairwise_accuracy_ci"] for sets in (better, worse)]
    assert high - low < 0.8 * math.hypot(*(interval[1] - interval[0] for interval in own))
    assert metrics.difference(worse, worse)["spearman_ci"] == [0, 0]
    with pytest.raises(ValueError, match="different ranked sets"):
        metrics.difference(better, better[1:])


def test_interval_is_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(1).normal(2, 3, size=2000).tolist()
    low, high = metrics.bootstrap_interval(values, seed=0)
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    assert low == pytest.approx(statistics.fmean(values) - half, abs=0.15 * half)
    assert high == pytest.approx(statistics.fmean(values) + half, abs=0.15 * half)
    narrow = metrics.bootstrap_interval(values, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(2)
    covered = 0
    for trial in range(40):
        low, high = metrics.bootstrap_interval((draw.random(60) < 0.3).tolist(), trial, level=0.8)
        covered += low <= 0.3 <= high
    assert 26 <= covered <= 38


def test_interval_of_a_ratio_resamples_units_not_answers() -> None:
    # Units that are all right or all wrong: as 10 answers each they are no more certain than as 1.
    flags = [float(i % 3 == 0) for i in range(60)]
    by_unit = metrics.bootstrap_interval([(10 * flag, 10.0) for flag in flags], seed=0)
    assert by_unit == pytest.approx(metrics.bootstrap_interval(flags, seed=0))
    as_answers = metrics.bootstrap_interval([flag for flag in flags for _ in range(10)], seed=0)
    assert as_answers[1] - as_answers[0] < 0.5 * (by_unit[1] - by_unit[0])


def test_interval_of_nothing_is_none() -> None:
    assert metrics.bootstrap_interval([], seed=0) is None
    assert metrics.bootstrap_interval([(0.0, 0.0), (0.0, 0.0)], seed=0) is None
    assert metrics.paired_bootstrap([], [], seed=0) is None


def test_paired_bootstrap_cancels_what_both_share() -> None:
    shared = np.random.default_rng(3).normal(0, 10, size=50)
    difference, low, high = metrics.paired_bootstrap((shared + 1).tolist(), shared.tolist(), seed=0)
    assert (difference, low, high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    with pytest.raises(ValueError, match="there are 2 and 1"):
        metrics.paired_bootstrap([1.0, 2.0], [1.0], seed=0)


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        ("A", "B", "win"),
        ("B", "A", "loss"),
        ("A", "A", "tie"),  # a judge that likes the first place
        ("B", "B", "tie"),
        ("A", "tie", "tie"),
        ("tie", "A", "tie"),
        ("tie", "tie", "tie"),
        (None, "B", None),
        ("A", None, None),
    ],
)
def test_win_takes_both_orders(forward, backward, expected) -> None:
    assert metrics.outcome(forward, backward) == expected
    counts = metrics.win_tie_loss([forward], [backward])
    assert counts == {"win": 0, "tie": 0, "loss": 0, "unread": 0} | {expected or "unread": 1}
