"""Puts the models' evaluations side by side: report.json's content, and a table with a plot for the
terminal. Pure functions over plain dictionaries; knows no file and no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One number of an evaluation, with an interval beside it under `key + "_ci"`."""

    axis: str
    key: str
    label: str


MEASURES = (
    Measure("instruction_following", "truth_score", "true score, 0 to 5"),
    Measure("instruction_following", "truth_perfect", "all five points met"),
    Measure("instruction_following", "greedy_perfect", "all five points met, greedy"),
    Measure("instruction_following", "win_rate_vs_previous", "wins over the model before"),
    Measure("judging", "pairwise_accuracy", "pairwise accuracy"),
    Measure("judging", "five_best", "an answer given 5 is the best"),
    Measure("judging", "exact_match", "whole order right"),
    Measure("judging", "spearman", "Spearman ρ"),
    Measure("judging", "kendall", "Kendall τ"),
    Measure("judging", "scored", "answers that got a score"),
)
AXES = {"instruction_following": "Following instructions", "judging": "Judging answers"}


def build_report(evaluations: Mapping[str, Mapping[str, Any]]) -> Tree:
    """report.json from `{"M1": {"instruction_following": …, "judging": …, "counts", "seconds"},
    …}`.

    Each known measure is there, with its interval; what does not apply is None, not left out.
    """
    return {"models": {name: _complete(evaluation) for name, evaluation in evaluations.items()}}


def _complete(evaluation: Mapping[str, Any]) -> Tree:
    axes: Tree = {axis: {} for axis in AXES}
    for measure in MEASURES:
        axes[measure.axis] |= {measure.key: None, f"{measure.key}_ci": None}
    found = {axis: axes[axis] | dict(evaluation.get(axis) or {}) for axis in AXES}
    return found | {key: dict(evaluation.get(key) or {}) for key in ("counts", "seconds")}


def shown(report: Tree) -> list[Measure]:
    """The measures that at least one model of the report has a value for."""
    return [measure for measure in MEASURES if any(v is not None for v in values(report, measure))]


def headline(report: Tree, axis: str) -> Measure | None:
    """The measure that stands for an axis in a plot: the truth where it is known, else what is."""
    order = ("truth_perfect", "truth_score", "win_rate_vs_previous", "pairwise_accuracy")
    known = {measure.key: measure for measure in shown(report) if measure.axis == axis}
    return next((known[key] for key in order if key in known), None)


def values(report: Tree, measure: Measure) -> list[float | None]:
    """One value a model, in the models' order."""
    return [model[measure.axis][measure.key] for model in report["models"].values()]


def intervals(report: Tree, measure: Measure) -> list[Sequence[float] | None]:
    """One (low, high) a model, in the models' order."""
    return [model[measure.axis][f"{measure.key}_ci"] for model in report["models"].values()]


def render_text(report: Tree) -> str:
    """The table, then for each axis a line a model: `●` the value, `├─┤` its interval."""
    parts = [_table(report)]
    for axis in AXES:
        if measure := headline(report, axis):
            parts.append(_plot(report, measure))
    return "\n\n".join(parts) + "\n"


def _table(report: Tree) -> str:
    names = list(report["models"])
    rows = [["", *names]]
    axis = ""
    for measure in shown(report):
        if measure.axis != axis:
            axis = measure.axis
            rows.append([AXES[axis], *("" for _ in names)])
        cells = map(cell, values(report, measure), intervals(report, measure))
        rows.append([f"  {measure.label}", *cells])
    totals = [sum(model["seconds"].values()) for model in report["models"].values()]
    rows.append(["Seconds, all stages", *(f"{total:.0f}" for total in totals)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("   ".join(text.ljust(width) for text, width in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def cell(value: float | None, interval: Sequence[float] | None) -> str:
    """`0.447 [0.401, 0.493]`; a dash where there is no value."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _plot(report: Tree, measure: Measure, width: int = 60) -> str:
    points = list(zip(report["models"], values(report, measure), intervals(report, measure)))
    low, high = bounds(report, measure)

    def column(value: float) -> int:
        return round((value - low) / (high - low) * (width - 1))

    names = max(len(name) for name in report["models"])
    lines = [f"{AXES[measure.axis]}: {measure.label}"]
    for name, value, interval in points:
        line = [" "] * width
        if value is not None:
            if interval:
                left, right = column(interval[0]), column(interval[1])
                line[left : right + 1] = "─" * (right + 1 - left)
                line[left], line[right] = "├", "┤"
            line[column(value)] = "●"
        lines.append(f"{name.rjust(names)} │{''.join(line)}│".rstrip())
    scale = f"{low:.3f}".ljust(width - 5) + f"{high:.3f}"
    return "\n".join([*lines, " " * (names + 2) + scale])


def bounds(report: Tree, measure: Measure) -> tuple[float, float]:
    """The least and the greatest number to be drawn, never equal."""
    numbers = [value for value in values(report, measure) if value is not None]
    numbers += [end for interval in intervals(report, measure) if interval for end in interval]
    low, high = min(numbers), max(numbers)
    return (low, high) if low < high else (low - 0.5, high + 0.5)
