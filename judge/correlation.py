"""Spearman's ρ and Kendall's τ-b of two short lists. Knows nothing of judges."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import combinations


def rho(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks. 0 where a list is constant or too short."""
    middle = (len(xs) + 1) / 2
    x_ranks = [rank - middle for rank in _shared_ranks(xs)]
    y_ranks = [rank - middle for rank in _shared_ranks(ys)]
    return _normalised(_dot(x_ranks, y_ranks), _dot(x_ranks, x_ranks), _dot(y_ranks, y_ranks))


def tau(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Kendall's τ-b: agreeing less disagreeing pairs. 0 where a list is constant or too short."""
    x_signs = [_sign(a - b) for a, b in combinations(xs, 2)]
    y_signs = [_sign(a - b) for a, b in combinations(ys, 2)]
    return _normalised(_dot(x_signs, y_signs), _dot(x_signs, x_signs), _dot(y_signs, y_signs))


def _shared_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 upwards; equal values share the mean of their places."""
    ordered = sorted(values)
    return [(bisect_left(ordered, x) + bisect_right(ordered, x) + 1) / 2 for x in values]


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second))


def _normalised(product: float, first: float, second: float) -> float:
    return product / math.sqrt(first * second) if first * second else 0.0


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
