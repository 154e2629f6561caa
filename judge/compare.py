"""Lets a judge choose between two answers, shown in both orders, or score both. Knows no model."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judge.complete import Complete, Row
from judge.metrics import Choice, Outcome, outcome
from judge.ranked import by_response
from judge.rubric import PROMPTS, Rubric, fill, read_template, require_places
from judge.score import judge_in_parts, mean_score

VERDICT = re.compile(r"[\s*_`]*better[*_`]*\s*:[\s*_`]*(a|b|neither)[\s*_`.]*", re.I | re.A)
CHOICES: dict[str, Choice] = {"a": "A", "b": "B", "neither": "tie"}


def parse_choice(text: str) -> Choice | None:
    """The verdict that a judge's own reply ends in: its last line is `Better: A`, `B` or `neither`.

    None, never a tie, for everything else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    verdict = VERDICT.fullmatch(lines[-1]) if lines else None
    return CHOICES[verdict[1].lower()] if verdict else None


def load_comparison(name_or_path: str) -> str:
    """The template in judge/prompts/NAME.txt, or in a text file of the user's; its reply must end
    in a verdict that `parse_choice` reads.

    Raises ValueError if there is no such file, or it lacks `{prompt}`, `{first}` or `{second}`.
    """
    ours = PROMPTS / f"{name_or_path}.txt"
    template = read_template(ours if ours.is_file() else Path(name_or_path))
    require_places(template, ("prompt", "first", "second"), name_or_path)
    return template


def compare_responses(complete: Complete, items: Sequence[Row], **how: Any) -> list[Row]:
    """`compare_in_parts` with one part."""
    [rows] = compare_in_parts(complete, [items], **how)
    return rows


def compare_in_parts(
    complete: Complete,
    parts: Sequence[Sequence[Row]],
    *,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    template: str | None = None,
) -> Iterator[list[Row]]:
    """Asks once in each order about items `{id, prompt, ours, theirs}`.

    template: the judge's prompt (`load_comparison`); none: the one for answers, pairwise.txt.
    Yields each part's rows `{id, forward, backward, outcome, forward_text, backward_text}`: the
    choices as shown (ours is A forward, B backward; None if unread or cut off) and what they come
    to for ours ("win", "tie", "loss" or None). `metrics.win_tie_loss` counts them.
    """
    template = load_comparison("pairwise") if template is None else template
    shown = [
        (f"{item['id']}.{order}", item["prompt"], item[first], item[second])
        for items in parts
        for order, first, second in (("forward", "ours", "theirs"), ("backward", "theirs", "ours"))
        for item in items
    ]
    more: dict[str, Any] = {"parts": [2 * len(part) for part in parts]} if len(parts) > 1 else {}
    replies = complete(
        [fill(template, prompt=prompt, first=a, second=b) for _, prompt, a, b in shown],
        ids=[name for name, *_ in shown],
        n=1,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        description="comparing",
        **more,
    )
    rest = iter(replies)
    for items in parts:
        both = [reply for _, (reply,) in zip((*items, *items), rest)]
        said = [(parse_choice(one.text) if one.finished else None, one.text) for one in both]
        yield [
            {
                "id": item["id"],
                "forward": forward,
                "backward": backward,
                "outcome": outcome(forward, backward),
                "forward_text": forward_text,
                "backward_text": backward_text,
            }
            for item, (forward, forward_text), (backward, backward_text) in zip(
                items, said, said[len(items) :]
            )
        ]


def compare_scores(
    complete: Complete, rubric: Rubric, items: Sequence[Row], **how: Any
) -> list[Row]:
    """`scores_in_parts` with one part."""
    [rows] = scores_in_parts(complete, rubric, [items], **how)
    return rows


def scores_in_parts(
    complete: Complete, rubric: Rubric, parts: Sequence[Sequence[Row]], **how: Any
) -> Iterator[list[Row]]:
    """Scores both answers of items `{id, prompt, ours, theirs}` k times, each by itself; the higher
    mean wins. For a judge that has learnt to score, and not to compare. `how` is that of
    `judge_in_parts`.

    Yields each part's rows `{id, ours_score, theirs_score, outcome}`; None where an answer has no
    score.
    """
    sides = ("ours", "theirs")
    shown = [
        [
            {"id": f"{item['id']}.{side}", "prompt": item["prompt"], "response": item[side]}
            for item in items
            for side in sides
        ]
        for items in parts
    ]
    for items, judgements in zip(parts, judge_in_parts(complete, rubric, shown, **how)):
        judged = by_response(judgements)
        means = {name: mean_score(row["score"] for row in rows) for name, rows in judged.items()}
        rows = []
        for item in items:
            ours, theirs = (means[f"{item['id']}.{side}"] for side in sides)
            found = outcome_of_scores(ours, theirs)
            row = {"id": item["id"], "ours_score": ours, "theirs_score": theirs, "outcome": found}
            rows.append(row)
        yield rows


def outcome_of_scores(ours: float | None, theirs: float | None) -> Outcome | None:
    """None if either is missing. Scores that differ in the last bit are the same mean."""
    if ours is None or theirs is None:
        return None
    gap = round(ours - theirs, 9)
    return "win" if gap > 0 else "loss" if gap < 0 else "tie"
