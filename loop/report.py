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
    Measure("judging", "five_best", "a full score went to the best"),
    Measure("judging", "exact_match", "whole order right"),
    Measure("judging", "spearman", "Spearman ρ"),
    Measure("judging", "kendall", "Kendall τ"),
    Measure("judging", "scored", "answers that got a score"),
)
# What else is measured: on the page, and in the terminal only where a health rule speaks of it.
SIGNS = (
    Measure("instruction_following", "lc_win_rate_vs_previous", "wins, at equal length"),
    Measure("judging", "gain_vs_previous", "pairwise accuracy, gain on the model before"),
    Measure("answers", "mean_words", "words"),
    Measure("answers", "mean_tokens", "tokens"),
    Measure("answers", "cut_off", "cut off"),
    Measure("answers", "self_overlap", "ROUGE-L between answers to one prompt"),
    Measure("answers", "distinct_1", "different words / words"),
    Measure("answers", "distinct_2", "different word pairs / word pairs"),
    Measure("answers", "kl_to_m1", "KL from M1, nats an answer"),
    *(
        Measure(part, key, label)
        for part in ("scores", "own_scores")
        for key, label in (
            ("mean_score", "mean score"),
            ("full_score", "share of full scores"),
            ("commonest_score", "share of the commonest score"),
            ("unparsed", "judgements without a score"),
            ("tied_sets", "sets of answers all tied"),
            ("tied_pairs", "pairs of answers tied"),
            ("same_again", "K judgements: pairs that agree"),
            ("spread", "K judgements: standard deviation"),
            ("score_length", "Spearman ρ of score and length"),
            *((("rank_length", "the same of people's order"),) if part == "scores" else ()),
        )
    ),
    Measure("progress", "judged_win_rate", "wins over the model before, by its own scores"),
    Measure("progress", "lc_judged_win_rate", "the same at equal length"),
)
PARTS = {
    "answers": "Its sampled answers",
    "scores": "Its scores of what people ranked",
    "own_scores": "Its scores of its own answers, which taught the next model",
    "progress": "What a run until-plateau goes by",
}
AXES = {"instruction_following": "Following instructions", "judging": "Judging answers"}


def build_report(
    evaluations: Mapping[str, Mapping[str, Any]],
    findings: Sequence[Mapping[str, Any]] = (),
    overlap: Mapping[str, Any] | None = None,
) -> Tree:
    """report.json from `{"M1": {"instruction_following": …, "judging": …, "counts", "seconds"},
    …}`; findings of `loop.health`, and what `loop.overlap` makes of the prompts.

    Each known measure is there, with its interval; what does not apply is None, not left out.
    """
    models = {name: _complete(evaluation) for name, evaluation in evaluations.items()}
    return {"models": models, "health": [dict(row) for row in findings], "prompts": overlap}


def _complete(evaluation: Mapping[str, Any]) -> Tree:
    parts: Tree = {part: {} for part in (*AXES, *PARTS)}
    for measure in (*MEASURES, *SIGNS):
        parts[measure.axis] |= {measure.key: None, f"{measure.key}_ci": None}
    found = {part: empty | dict(evaluation.get(part) or {}) for part, empty in parts.items()}
    return found | {key: dict(evaluation.get(key) or {}) for key in ("counts", "seconds")}


def shown(report: Tree, measures: Sequence[Measure] = MEASURES) -> list[Measure]:
    """The measures that at least one model of the report has a value for."""
    return [measure for measure in measures if any(v is not None for v in values(report, measure))]


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
