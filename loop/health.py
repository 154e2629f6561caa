"""What goes wrong when a model is its own judge, as rules over the evaluations; and when to end.

Pure functions over plain dictionaries. Nothing here reads what the truth says: a run that could end
by the truth would be trained on it. docs/evaluation.md has the rules in a table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judge.pairs import NO_PAIR

Evaluation = Mapping[str, Any]  # as `loop.account.read_evaluation` returns it
Measure = Callable[[Evaluation, Evaluation], float | None]  # of M1 and of the model in question


@dataclass(frozen=True)
class Rule:
    """Something is wrong where the measure is at least the threshold."""

    name: str
    measure: Measure
    threshold: float
    stops: bool  # a run until-plateau; any other is only told
    meaning: str


@dataclass(frozen=True)
class Finding:
    """A rule that fires on a model."""

    model: str
    rule: str
    value: float
    threshold: float
    stops: bool
    meaning: str

    @property
    def line(self) -> str:
        """For the terminal."""
        weight = "stop" if self.stops else "warning"
        number = f"{self.value:.3g}, from {self.threshold:g} on"
        return f"{weight}: {self.model}: {self.rule} ({number}): {self.meaning}"


def findings(evaluations: Mapping[str, Evaluation]) -> list[Finding]:
    """What is wrong with each of the models M1, M2, …, in their order. What is not known breaks no
    rule.
    """
    if not evaluations:
        return []
    first = next(iter(evaluations.values()))
    found = []
    for model, evaluation in evaluations.items():
        for rule in RULES:
            value = rule.measure(first, evaluation)
            if value is not None and value >= rule.threshold:
                what = (rule.name, value, rule.threshold, rule.stops, rule.meaning)
                found.append(Finding(model, *what))
    return found


def ending(evaluations: Mapping[str, Evaluation], found: Sequence[Finding]) -> str | None:
    """Why a run until-plateau ends with the newest model, or None: it goes on.

    It ends on a finding that stops, and on a plateau: neither the share of prompts on which the
    newest model, as its own judge, scores its answer above its predecessor's (1/2 is no change)
    nor the pairwise accuracy on people's rankings is above what it was by more than its interval.
    """
    for finding in found:
        if finding.stops:
            return f"{finding.model}: {finding.rule}"
    newest = list(evaluations.values())[-1]
    wins = _get(newest, "progress", "judged_win_rate_ci")
    gain = _get(newest, "judging", "gain_vs_previous_ci")
    if wins is None or gain is None or wins[0] > 0.5 or gain[0] > 0:
        return None
    return (
        f"neither axis improved beyond its interval: wins by its own scores [{wins[0]:.3f}, "
        f"{wins[1]:.3f}] against 0.5, pairwise accuracy by [{gain[0]:.3f}, {gain[1]:.3f}]"
    )


def _get(evaluation: Evaluation, part: str, key: str) -> Any:
    return (evaluation.get(part) or {}).get(key)


def _of(part: str, key: str) -> Measure:
    return lambda first, this: _get(this, part, key)


def _growth(part: str, key: str) -> Measure:
    """How many times M1's value."""

    def measure(first: Evaluation, this: Evaluation) -> float | None:
        old, new = _get(first, part, key), _get(this, part, key)
        return None if old is None or new is None or not old else new / old

    return measure


def _shrinking(part: str, key: str) -> Measure:
    """The share of M1's value that is lost."""
    grown = _growth(part, key)

    def measure(first: Evaluation, this: Evaluation) -> float | None:
        value = grown(first, this)
        return None if value is None else 1 - value

    return measure


def _falling(first: Evaluation, this: Evaluation) -> float | None:
    """By how much the accuracy's interval lies below M1's; negative where they overlap."""
    old, new = (_get(which, "judging", "pairwise_accuracy_ci") for which in (first, this))
    return None if old is None or new is None else float(old[0] - new[1])


def _without_pair(first: Evaluation, this: Evaluation) -> float | None:
    counts = _get(this, "counts", "pairs.jsonl") or {}
    if not counts.get("prompts"):
        return None
    # not by the number of pairs: one prompt may have several
    return float(sum(counts.get(reason, 0) for reason in NO_PAIR) / counts["prompts"])


def _by_length(first: Evaluation, this: Evaluation) -> float | None:
    """What of the win rate, if a judge gave it, goes away at equal length."""
    part, key = "progress", "judged_win_rate"
    if _get(this, part, key) is None and _get(this, "instruction_following", "head_to_head"):
        part, key = "instruction_following", "win_rate_vs_previous"
    plain, controlled = _get(this, part, key), _get(this, part, f"lc_{key}")
    return None if plain is None or controlled is None else float(plain - controlled)


RULES = (
    Rule(
        "saturation", _of("own_scores", "full_score"), 0.95, True,
        "it gives nearly all of its own answers the full score; what it still prefers is noise",
    ),
    Rule(
        "collapse to one score", _of("scores", "commonest_score"), 0.9, True,
        "it gives nearly every answer one and the same score, whoever wrote it",
    ),
    Rule(
        "judge drift", _falling, 0.01, True,
        "it agrees with people's rankings less than M1 did, beyond both intervals",
    ),
    Rule(
        "too few pairs", _without_pair, 0.9, False,
        "nine prompts in ten made no pair: ties, unread judgements or equal texts",
    ),
    Rule(
        "length drift", _growth("answers", "mean_words"), 2.0, False,
        "answers are twice as long as M1's; look at the win rate at equal length",
    ),
    Rule(
        "wins by length", _by_length, 0.1, False,
        "its judge prefers it much less at equal length",
    ),
    Rule(
        "degenerate diversity", _shrinking("answers", "distinct_2"), 0.5, False,
        "half of the different word pairs that M1's answers had are gone",
    ),
    Rule(
        "unread judgements", _of("scores", "unparsed"), 0.2, False,
        "a fifth of its judgements end in no score, or not within max_new_tokens",
    ),
    Rule(
        "answers cut off", _of("answers", "cut_off"), 0.2, False,
        "a fifth of its answers do not end within max_new_tokens; they make no pairs",
    ),
)  # fmt: skip
