"""How long answers are, and how much alike. Pure functions over rows; knows no model."""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from judge.bootstrap import means
from loop.rows import Row
from sampling.rouge import rouge_l, words

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
Tally = tuple[float, float]  # sum and count


def text_signs(answers: Sequence[Row], level: float) -> dict[str, Any]:
    """Lengths and diversity of answers `{prompt_id, text, token_count, finished}`, N a prompt.

    The unit of every interval is the prompt. `distinct_1` and `distinct_2` have none: a resample
    holds prompts twice, whose n-grams are no longer distinct.
    """
    groups: dict[str, list[Row]] = {}
    for row in answers:
        groups.setdefault(row["prompt_id"], []).append(row)
    tallies = {
        "mean_words": _sums(groups, word_count),
        "mean_tokens": _sums(groups, lambda row: row["token_count"]),
        "cut_off": _sums(groups, lambda row: not row["finished"]),
        "self_overlap": [_overlap(group) for group in groups.values()],
    }
    return {
        **means(tallies, level=level),
        "words_quantiles": quantiles([word_count(row) for row in answers]),
        "tokens_quantiles": quantiles([row["token_count"] for row in answers]),
        "distinct_1": distinct([row["text"] for row in answers], 1),
        "distinct_2": distinct([row["text"] for row in answers], 2),
    }


def word_count(row: Row) -> int:
    """Words between spaces: the length that people see."""
    return len(row["text"].split())


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """`{"10": …, "25": …, "50": …, "75": …, "90": …}`, in per cent; {} of nothing."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values, dtype=float), QUANTILES)
    return {f"{100 * q:.0f}": float(value) for q, value in zip(QUANTILES, found)}


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055), n 1 or 2, of
    `sampling.rouge`'s words; None if there are none. It falls as the texts get more, so compare
    like many.
    """
    grams = [gram for text in texts for gram in (words(text) if n == 1 else pairwise(words(text)))]
    return len(set(grams)) / len(grams) if grams else None


def _overlap(group: Sequence[Row]) -> Tally:
    """ROUGE-L between all pairs of a prompt's answers."""
    texts = [words(row["text"]) for row in group]
    overlaps = [rouge_l(a, b) for a, b in combinations(texts, 2)]
    return sum(overlaps), float(len(overlaps))


def _sums(groups: dict[str, list[Row]], measure: Callable[[Row], float]) -> list[Tally]:
    return [(float(sum(map(measure, group))), float(len(group))) for group in groups.values()]
