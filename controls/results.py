"""RESULTS.md out of the arms' evaluations: every seed, means, intervals. Knows no model and no run.

The unit is the seed: an interval is Student's, over the seeds' values. (The prompts of the
evaluation are the same for all seeds and arms.)
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev

from loop.rows import Row

Value = float | None  # None: unknown
AXES = (
    ("instruction_following", "truth_perfect", "Instruction following: all five points, sampled"),
    ("instruction_following", "greedy_perfect", "Instruction following: all five points, greedy"),
    ("instruction_following", "truth_score", "Instruction following: points, 0 to 5"),
    ("judging", "pairwise_accuracy", "Judging: pairwise accuracy"),
    ("judging", "five_best", "Judging: a full score went to the best"),
    ("judging", "exact_match", "Judging: whole order right"),
    ("judging", "spearman", "Judging: Spearman ρ"),
    ("judging", "kendall", "Judging: Kendall τ"),
)
# Student's t at 97.5 %, by degrees of freedom
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
UNKNOWN = "–"  # a judge without one readable score
HEAD = """# Results

What `make controls` wrote: the loop and its controls on the embedded world, {seeds} seeds, the same
M1 for all arms of a seed. A seed decides the order of the training data and all sampling; M0 and
the seed data are the same. Values are means over the seeds with Student's 95 % interval;
differences are taken within a seed. What each arm is stands in `controls/arms.py`.
"""


def render_results(runs: Sequence[dict[str, list[Row]]]) -> str:
    """The file's text; `runs`: per seed, the evaluations (M1 … MN) of each arm, the loop first."""
    arms = list(runs[0])
    last = len(runs[0][arms[0]])
    names = [f"M{t}" for t in range(1, last + 1)]
    steps = [f"{a} → {b}" for a, b in [*pairwise(names), (names[0], names[-1])]]
    head = [
        "arm",
        *names,
        *dict.fromkeys(steps),
        "each seed",
        f"the {arms[0]}'s M{last} is ahead by",
    ]
    parts = [HEAD.format(seeds=len(runs))]
    for axis, key, title in AXES:
        values = {arm: [[model[axis][key] for model in run[arm]] for run in runs] for arm in arms}
        lines = [f"## {title}\n", _line(head), "|---" * len(head) + "|"]
        lines += [_line([arm, *_cells(values[arm], values[arms[0]])]) for arm in arms]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


ABLATION_HEAD = """# Ablations

The loop with one choice made otherwise (`controls/ablations.py` says which), the first {seeds} of
the seeds above. M3's mean over the seeds with Student's 95 % interval, and its difference from the
loop's M3, taken within a seed. All are evaluated alike. The last columns: pairs that M1 and M2
made; tokens of an answer of M3.

`python -m controls --seeds {seeds} --only "LABEL"` makes one row of it.
"""
ABLATION_AXES = (
    ("instruction_following", "truth_perfect", "all five points, sampled"),
    ("instruction_following", "greedy_perfect", "greedy"),
    ("judging", "pairwise_accuracy", "judging: pairwise accuracy"),
    ("judging", "kendall", "Kendall τ"),
)


def render_ablations(runs: Sequence[dict[str, list[Row]]]) -> str:
    """The ablations' table; `runs` as in `render_results`, each model with its count of `pairs`."""
    loop = next(iter(runs[0]))
    titles = [part for *_, title in ABLATION_AXES for part in (title, "change")]
    head = ["arm", *titles, "pairs", "tokens"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for arm in runs[0]:
        cells = [arm]
        for axis, key, _ in ABLATION_AXES:
            ours = [_last(run[arm], axis, key) for run in runs]
            theirs = [_last(run[loop], axis, key) for run in runs]
            change = [_minus(a, b) for a, b in zip(ours, theirs)]
            cells += [interval(ours), "" if arm == loop else interval(change, "+.3f")]
        made = zip(*([model["pairs"] for model in run[arm][:-1]] for run in runs))
        cells.append(" → ".join(_mean(counts, ".0f") for counts in made))
        tokens = [_last(run[arm], "instruction_following", "mean_tokens") for run in runs]
        lines.append(_line([*cells, _mean(tokens, ".1f")]))
    head_text = ABLATION_HEAD.format(seeds=len(runs))
    return "\n".join([head_text, *lines]) + "\n"


def _last(models: Sequence[Row], axis: str, key: str) -> Value:
    """A measure of the last model."""
    value: Value = models[-1][axis][key]
    return value


def _minus(a: Value, b: Value) -> Value:
    return None if a is None or b is None else a - b


def _cells(arm: Sequence[Sequence[Value]], loop: Sequence[Sequence[Value]]) -> list[str]:
    """An arm's row of a table, from the values of M1 … MN, seed by seed, and the loop's."""
    models = [interval(values) for values in zip(*arm)]
    gains = [[_minus(b, a) for a, b in pairwise(seed)] for seed in arm]
    whole = [_minus(seed[-1], seed[0]) for seed in arm]
    steps = [interval(gain, "+.3f") for gain in zip(*gains)] if len(models) > 2 else []
    ahead = [_minus(ours[-1], theirs[-1]) for ours, theirs in zip(loop, arm)]
    each = ", ".join(_mean([gain], "+.3f") for gain in whole)
    return [
        *models,
        *steps,
        interval(whole, "+.3f"),
        each,
        "" if arm is loop else interval(ahead, "+.3f"),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[Value], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(fmean(known), form) if len(known) == len(values) else UNKNOWN


def interval(values: Sequence[Value], form: str = ".3f") -> str:
    """`0.447 [0.401, 0.493]`: mean and 95 % interval; for one value the mean alone; where a seed's
    value is unknown, `–`: the others alone would be another sample.
    """
    known = [value for value in values if value is not None]
    if len(known) < max(2, len(values)):
        return _mean(values, form)
    mean, half = fmean(known), T_975[len(known) - 1] * stdev(known) / sqrt(len(known))
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"
