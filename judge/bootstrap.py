"""Intervals for means and for ratios of sums, by resampling. Knows not what is measured."""

# N units (instructions), R resamples, C columns; every two columns are a tally: sum and count

from collections.abc import Mapping, Sequence

import numpy as np

Values = Sequence[float] | Sequence[tuple[float, float]]
RESAMPLES = 2000


def bootstrap_interval(
    values: Values, seed: int, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile interval `(low, high)` of a mean over N units.

    values: N numbers, or N tallies `(sum, count)` of a metric that is Σ sum / Σ count. A resample
    in which nothing was counted is left out; None if nothing was counted at all.
    """
    tallies_N2 = _tallies(values)
    if not tallies_N2[:, 1].any():
        return None
    return _percentiles(_ratios(_resampled_sums(tallies_N2, seed)), level)


def means(
    tallies: Mapping[str, Sequence[tuple[float, float]]], seed: int = 0, level: float = 0.95
) -> dict[str, float | list[float] | None]:
    """Each tally's mean under its name, and its interval under `…_ci`; both None if nothing was
    counted. All are of the same N units and are resampled by the same draws.
    """
    report: dict[str, float | list[float] | None] = {}
    columns = [_tallies(tally) for tally in tallies.values()]
    counted = [bool(len(column)) and bool(column[:, 1].any()) for column in columns]
    sums_RC = _resampled_sums(np.hstack(columns), seed) if any(counted) else np.zeros((0, 0))
    for i, (name, known) in enumerate(zip(tallies, counted)):
        report[name] = ratio(columns[i]) if known else None
        sums_R2 = sums_RC[:, 2 * i : 2 * i + 2]
        report[f"{name}_ci"] = list(_percentiles(_ratios(sums_R2), level)) if known else None
    return report


def paired_bootstrap(
    first: Values, second: Values, seed: int, level: float = 0.95
) -> tuple[float, float, float] | None:
    """`(difference, low, high)` of mean(first) − mean(second), measured on the same N units.

    Both are resampled by the same draws, so what makes a unit hard for both cancels out. None if
    either counted nothing at all. Raises ValueError if the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(
            f"paired means need the same units; there are {len(first)} and {len(second)}"
        )
    first_N2, second_N2 = _tallies(first), _tallies(second)
    if not (first_N2[:, 1].any() and second_N2[:, 1].any()):
        return None
    sums_RC = _resampled_sums(np.hstack([first_N2, second_N2]), seed)
    low, high = _percentiles(_ratios(sums_RC[:, :2]) - _ratios(sums_RC[:, 2:]), level)
    return ratio(first_N2) - ratio(second_N2), low, high


def ratio(tallies_N2: Sequence[tuple[float, float]] | np.ndarray) -> float:
    """Σ sum / Σ count: one division, never a mean of means. NaN if nothing was counted."""
    total, count = np.asarray(tallies_N2, dtype=float).reshape(-1, 2).sum(axis=0)
    return float(total / count) if count else float("nan")


def _tallies(values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return np.stack([array, np.ones_like(array)], axis=1) if array.ndim == 1 else array


def _resampled_sums(values_NC: np.ndarray, seed: int) -> np.ndarray:
    """The columns' sums in each resample, [R, C]."""
    generator = np.random.default_rng(seed)
    units = len(values_NC)
    drawn = (generator.integers(units, size=units) for _ in range(RESAMPLES))
    return np.stack([np.bincount(draw, minlength=units) @ values_NC for draw in drawn])


def _ratios(sums_R2: np.ndarray) -> np.ndarray:
    """The ratio in each resample, [R]; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):  # 0/0
        return np.asarray(sums_R2[:, 0] / sums_R2[:, 1])


def _percentiles(values_R: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(values_R, [tail, 1 - tail])
    return float(low), float(high)
