"""What a judge's scores look like, whether or not they are right: spread, ties, silence, agreement
with itself, and whether they follow length. Knows no model; of a text only its length.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from judge.bootstrap import means
from judge.complete import Row
from judge.correlation import rho
from judge.ranked import answer_id, by_response, ranks
from judge.score import mean_score


@dataclass(frozen=True)
class Answer:
    """An answer by its length in words and by what its K judgements say; None: no score."""

    words: int
    scores: Sequence[float | None]

    @property
    def mean(self) -> float | None:
        """Rounded: the same mean of more or fewer judgements may differ in its last bit."""
        mean = mean_score(self.scores)
        return None if mean is None else round(mean, 9)


Answers = Sequence[Answer]  # to one instruction
Tally = tuple[float, float]  # sum and count


def signs(groups: Sequence[Answers], high: float, level: float = 0.95) -> dict[str, Any]:
    """The measures of TALLIES, with intervals over instructions, and of all judgements together a
    `histogram` (a score counts as the nearest whole number) and the share of its commonest score.

    groups: one an instruction. high: the rubric's full score.
    """
    tallies = {name: [tally(group) for group in groups] for name, tally in TALLIES.items()}
    full = [
        (float(sum(round(score) == round(high) for score in scored)), float(len(scored)))
        for scored in map(_scored, groups)
    ]
    counts = Counter(round(score) for group in groups for score in _scored(group))
    total = sum(counts.values())
    return {
        **means(tallies | {"full_score": full}, level=level),
        "commonest_score": max(counts.values()) / total if total else None,
        "histogram": {str(score): counts[score] for score in sorted(counts)},
    }


def ranked_groups(ranked: Sequence[Row], judgements: Sequence[Row]) -> list[Answers]:
    """The answers of ranked rows `{id, responses: [{text, rank}]}` with their judgements."""
    found = by_response(judgements)
    return [
        [
            Answer(
                len(response["text"].split()),
                [judgement["score"] for judgement in found.get(answer_id(row, i), [])],
            )
            for i, response in enumerate(row["responses"])
        ]
        for row in ranked
    ]


def response_groups(responses: Sequence[Row], judgements: Sequence[Row]) -> list[Answers]:
    """The candidates `{id, prompt_id, text}` with their judgements, a group each prompt."""
    found = by_response(judgements)
    groups: dict[str, list[Answer]] = {}
    for row in responses:
        scores = [judgement["score"] for judgement in found.get(row["id"], [])]
        groups.setdefault(row["prompt_id"], []).append(Answer(len(row["text"].split()), scores))
    return list(groups.values())


def rank_length(ranked: Sequence[Row], level: float = 0.95) -> dict[str, Any]:
    """What `score_length` would be if the scores were people's order: the length bias to expect."""
    groups = [
        [
            (-rank, len(response["text"].split()))
            for rank, response in zip(ranks(row), row["responses"])
        ]
        for row in ranked
    ]
    return means({"rank_length": [_follows(group) for group in groups]}, level=level)


def _scored(group: Answers) -> list[float]:
    return [score for answer in group for score in answer.scores if score is not None]


def _mean_score(group: Answers) -> Tally:
    scored = _scored(group)
    return sum(scored), float(len(scored))


def _unparsed(group: Answers) -> Tally:
    every = [score for answer in group for score in answer.scores]
    return float(sum(score is None for score in every)), float(len(every))


def _means(group: Answers) -> list[float]:
    return [answer.mean for answer in group if answer.mean is not None]


def _tied_sets(group: Answers) -> Tally:
    found = _means(group)
    return float(len(found) > 1 and len(set(found)) == 1), float(len(found) > 1)


def _tied_pairs(group: Answers) -> Tally:
    pairs = list(combinations(_means(group), 2))
    return float(sum(a == b for a, b in pairs)), float(len(pairs))


def _repeats(group: Answers) -> list[list[float]]:
    """The scores of each answer that has at least two."""
    scored = ([score for score in answer.scores if score is not None] for answer in group)
    return [scores for scores in scored if len(scores) > 1]


def _same_again(group: Answers) -> Tally:
    pairs = [pair for scores in _repeats(group) for pair in combinations(scores, 2)]
    return float(sum(a == b for a, b in pairs)), float(len(pairs))


def _spread(group: Answers) -> Tally:
    repeats = _repeats(group)
    return sum(map(_deviation, repeats)), float(len(repeats))


def _deviation(scores: Sequence[float]) -> float:
    """The standard deviation, of a sample; `statistics.stdev` takes twenty times as long."""
    mean = sum(scores) / len(scores)
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))


def _score_length(group: Answers) -> Tally:
    return _follows([(answer.mean, answer.words) for answer in group if answer.mean is not None])


def _follows(group: Sequence[tuple[float, int]]) -> Tally:
    """Spearman's ρ within an instruction; 0 where the scores are all equal, nothing where the
    lengths are.
    """
    values, lengths = [value for value, _ in group], [length for _, length in group]
    return (rho(values, lengths), 1.0) if len(set(lengths)) > 1 else (0.0, 0.0)


TALLIES: dict[str, Callable[[Answers], Tally]] = {
    "mean_score": _mean_score,
    "unparsed": _unparsed,
    "tied_sets": _tied_sets,
    "tied_pairs": _tied_pairs,
    "same_again": _same_again,
    "spread": _spread,
    "score_length": _score_length,
}
