"""Who would win if both answered at the same length. Knows no model and no text.

A logistic regression of the outcome on the difference of lengths, evaluated where it is 0:
```
  P(win) = σ(a + b · tanh(d / s))        d = our length − theirs, s = the root of its mean square
  length-controlled win rate = σ(a)
```
This is AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475) in spirit: tanh, because a difference
that is large already sways a judge hardly more when it grows. Its term for the difficulty of each
instruction is left out: it takes many models' answers to one instruction, and here there are two.
"""

# N outcomes, R resamples

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 500
RIDGE = 1e-2  # on b: where length decides everything it would grow for ever, and never the fit
STEPS = 50
LARGEST = 30.0  # of |a| and |b|: where every answer wins, σ(30) is 1 to 13 digits


def length_controlled(
    outcomes: Sequence[float],
    differences: Sequence[float],
    units: Sequence[str],
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float] | None:
    """`(win rate, low, high)` at equal length; None if there are no outcomes.

    outcomes: 1 for a win, 0.5 for a tie, 0 for a loss. differences: by how much our answer is
    longer, in whatever unit. units: what each outcome belongs to (an instruction): the interval, a
    percentile interval of the bootstrap, resamples these as wholes. With equal lengths it is the
    plain win rate.
    """
    if not outcomes:
        return None
    outcome_N = np.asarray(outcomes, dtype=float)
    squeezed_N = _squeezed(np.asarray(differences, dtype=float))
    unit_N = np.unique(np.asarray(units), return_inverse=True)[1]
    weight_RN = np.vstack([np.ones((1, len(outcome_N))), _resampled(unit_N, seed)])
    rate_R = _sigmoid(_fit(outcome_N, squeezed_N, weight_RN))
    tail = (1 - level) / 2
    low, high = np.quantile(rate_R[1:], [tail, 1 - tail])
    return float(rate_R[0]), float(low), float(high)


def _squeezed(difference_N: np.ndarray) -> np.ndarray:
    scale = math.sqrt(float(np.mean(difference_N**2)))
    return np.tanh(difference_N / scale) if scale else difference_N


def _resampled(unit_N: np.ndarray, seed: int) -> np.ndarray:
    """How often each outcome is drawn in each resample, [R, N]."""
    generator = np.random.default_rng(seed)
    count = int(unit_N.max()) + 1
    draws = (generator.integers(count, size=count) for _ in range(RESAMPLES))
    return np.stack([np.bincount(draw, minlength=count)[unit_N] for draw in draws])


def _fit(outcome_N: np.ndarray, x_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """The intercept a of each resample's regression, [R]: Newton's method on the log-likelihood."""
    if not x_N.any():  # nothing to control for: the plain mean, without the iteration's rounding
        return _logit(weight_RN @ outcome_N / weight_RN.sum(axis=1))
    a_R1 = b_R1 = np.zeros((len(weight_RN), 1))
    for _ in range(STEPS):
        p_RN = _sigmoid(a_R1 + b_R1 * x_N)
        miss_RN = weight_RN * (outcome_N - p_RN)
        curve_RN = weight_RN * p_RN * (1 - p_RN) + 1e-12  # a plain is no reason to divide by 0
        gradient_R2 = np.stack([miss_RN.sum(1), miss_RN @ x_N - RIDGE * b_R1[:, 0]], axis=1)
        aa_R, ab_R, bb_R = curve_RN.sum(1), curve_RN @ x_N, curve_RN @ x_N**2 + RIDGE
        hessian_R22 = np.stack([aa_R, ab_R, ab_R, bb_R], axis=1).reshape(-1, 2, 2)
        step_R2 = np.linalg.solve(hessian_R22, gradient_R2[:, :, None])[:, :, 0].clip(-2, 2)
        a_R1 = (a_R1 + step_R2[:, :1]).clip(-LARGEST, LARGEST)
        b_R1 = (b_R1 + step_R2[:, 1:]).clip(-LARGEST, LARGEST)
        if np.abs(step_R2).max() < 1e-9:
            break
    return a_R1[:, 0]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _logit(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p) - np.log1p(-p)).clip(-LARGEST, LARGEST)
