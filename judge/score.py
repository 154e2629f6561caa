"""Turns a judge's replies into scores. Knows no model; parses only what the judge itself wrote."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from judge.complete import Complete, Completion, Row
from judge.rubric import Rubric

# ASCII digits only, and no letter before the word: "Underscore: 4" is no score.
LABEL = re.compile(r"(?<![a-z0-9])score[*_`]*\s*:", re.IGNORECASE | re.ASCII)
NUMBER = re.compile(r"[\s*_`]*(\d{1,3}(?:\.\d{1,6})?)(?:\s*/\s*(\d{1,3}))?[\s*_`.]*", re.ASCII)


def parse_score(text: str, low: float = 0.0, high: float = 5.0) -> float | None:
    """The score in which a judge's own reply ends: `Score: N` closes its last non-empty line.

    `4`, `4.5`, `4/5` and `**4**.` are numbers here. None, never a number, for everything else: no
    score on the last line, two of them, something after it, another denominator than `high`, or a
    value outside [low, high].
    """
    lines = [line for line in text.splitlines() if line.strip()]
    label = LABEL.search(lines[-1]) if lines else None
    # From the first label to the end: "Score: 2 … Score: 4" leaves open which is meant.
    number = NUMBER.fullmatch(lines[-1], label.end()) if label else None
    if number is None:
        return None
    value, of = float(number[1]), number[2]
    if of is not None and float(of) != high:
        return None
    return value if low <= value <= high else None


def read_score(text: str, rubric: Rubric) -> float | None:
    """The score in which a reply to this rubric ends, as `parse_score`; or as the rubric's own
    pattern says: then its last non-empty line is the pattern, with a number for `{score}`.
    """
    if rubric.pattern is None:
        return parse_score(text, rubric.low, rubric.high)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    before, after = map(re.escape, rubric.pattern.split("{score}"))
    found = re.fullmatch(
        rf"{before}\s*(\d{{1,3}}(?:\.\d{{1,6}})?)\s*{after}", lines[-1] if lines else ""
    )
    value = float(found[1]) if found else None
    return value if value is not None and rubric.low <= value <= rubric.high else None


def said_score(judgement: Row) -> float | None:
    """The score in which a judgement's text ends, which is what its text teaches; its `score` may
    be an expected one.
    """
    said: float | None = judgement.get("said", judgement["score"])
    return said


def mean_score(scores: Iterable[float | None]) -> float | None:
    """The mean of those that are numbers; None if none is."""
    numbers = [score for score in scores if score is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def judge_responses(
    complete: Complete, rubric: Rubric, items: Sequence[Row], **how: Any
) -> list[Row]:
    """`judge_in_parts` with one part."""
    [rows] = judge_in_parts(complete, rubric, [items], **how)
    return rows


def judge_in_parts(
    complete: Complete,
    rubric: Rubric,
    parts: Sequence[Sequence[Row]],
    *,
    k: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    expected: bool = False,
) -> Iterator[list[Row]]:
    """Asks the judge k times about every item `{id, prompt, response}`.

    expected: the score is the mean over all scores that the judge might have written in the place
    of the one it wrote, by their probabilities (as G-Eval, Liu et al. 2023; see `expected_score`);
    that one is `said`.

    Yields each part's judgement rows `{id, response_id, k, text, score, finished}`, an item's k
    together. The score is None where the reply ran into `max_new_tokens`: its last line may be half
    a number.
    """
    items = list(chain.from_iterable(parts))
    more: dict[str, Any] = {"choices": rubric.endings} if expected else {}
    if len(parts) > 1:
        more["parts"] = [len(part) for part in parts]
    replies = complete(
        [rubric.render(item["prompt"], item["response"]) for item in items],
        ids=[item["id"] for item in items],
        n=k,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        description="judging",
        **more,
    )
    rest = iter(replies)
    for part in parts:
        yield [
            {
                "id": f"{item['id']}.{number}",
                "response_id": item["id"],
                "k": number,
                "text": reply.text,
                **_scored(reply, rubric, expected),
                "finished": reply.finished,
            }
            for item, samples in zip(part, rest)
            for number, reply in enumerate(samples)
        ]


def _scored(reply: Completion, rubric: Rubric, expected: bool) -> Row:
    said = read_score(reply.text, rubric) if reply.finished else None
    if not expected:
        return {"score": said}
    return {"score": None if said is None else expected_score(said, reply, rubric), "said": said}


def expected_score(said: float, reply: Completion, rubric: Rubric) -> float:
    """The mean of the rubric's whole scores, weighed by their chances where `said` was written.

    That is where any of them, had it been written instead, would have been read as the score: the 4
    of `Score: 4/5` and of `Score: 4.0`, and no number elsewhere. Where there is no such place, as
    in `Score: 4.5`, the score is what was said.
    """
    for choice, end, chances in reply.places:
        before = reply.text[:end].removesuffix(str(rubric.scores[choice]))
        instead = (f"{before}{score}{reply.text[end:]}" for score in rubric.scores)
        if [read_score(text, rubric) for text in instead] == rubric.scores:
            total = math.fsum(score * chance for score, chance in zip(rubric.scores, chances))
            return total / math.fsum(chances)
    return said
