"""Lets a judge choose between two answers, shown in both orders, or score both. Knows no model."""

import re
from collections.abc import Sequence
from pathlib import Path

from judge.complete import Complete, Row
from judge.metrics import Choice, Outcome, outcome
from judge.ranked import by_response
from judge.rubric import PROMPTS, Rubric, fill, read_template, require_places
from judge.score import judge_responses, mean_score

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


def compare_responses(
    complete: Complete,
    items: Sequence[Row],
    *,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    template: str | None = None,
) -> list[Row]:
    """Asks once in each order about items `{id, prompt, ours, theirs}`.

    template: the judge's prompt (`load_comparison`); none: the one for answers, pairwise.txt.
    Returns rows `{id, forward, backward, outcome, forward_text, backward_text}`: the choices as
    shown (ours is A forward, B backward; None if unread or cut off) and what they come to for ours
    ("win", "tie", "loss" or None). `metrics.win_tie_loss` counts them.
    """
    template = load_comparison("pairwise") if template is None else template
    shown = [
        (item["prompt"], item[first], item[second])
        for first, second in (("ours", "theirs"), ("theirs", "ours"))
        for item in items
    ]
    replies = complete(
        [fill(template, prompt=prompt, first=a, second=b) for prompt, a, b in shown],
        ids=[f"{item['id']}.{order}" for order in ("forward", "backward") for item in items],
        n=1,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        description="comparing",
    )
    texts = [reply.text for (reply,) in replies]
    choices = [parse_choice(reply.text) if reply.finished else None for (reply,) in replies]
    half = len(items)
    return [
        {
            "id": item["id"],
            "forward": choices[i],
            "backward": choices[half + i],
            "outcome": outcome(choices[i], choices[half + i]),
            "forward_text": texts[i],
            "backward_text": texts[half + i],
        }
        for i, item in enumerate(items)
    ]


def compare_scores(
    complete: Complete,
    rubric: Rubric,
    items: Sequence[Row],
    *,
    k: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    expected: bool = False,
) -> list[Row]:
    """Scores both answers of items `{id, prompt, ours, theirs}` k times, each by itself; the higher
    mean wins. For a judge that has learnt to score, and not to compare. The rest is as in
    `judge_responses`.

    Returns rows `{id, ours_score, theirs_score, outcome}`; None where an answer has no score.
    """
    shown = [
        {"id": f"{item['id']}.{side}", "prompt": item["prompt"], "response": item[side]}
        for item in items
        for side in ("ours", "theirs")
    ]
    judgements = judge_responses(
        complete,
        rubric,
        shown,
        k=k,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        expected=expected,
    )
    judged = by_response(judgements)
    means = {name: mean_score(row["score"] for row in rows) for name, rows in judged.items()}
    rows = []
    for item in items:
        ours, theirs = means[f"{item['id']}.ours"], means[f"{item['id']}.theirs"]
        found = outcome_of_scores(ours, theirs)
        row = {"id": item["id"], "ours_score": ours, "theirs_score": theirs, "outcome": found}
        rows.append(row)
    return rows


def outcome_of_scores(ours: float | None, theirs: float | None) -> Outcome | None:
    """None if either is missing. Scores that differ in the last bit are the same mean."""
    if ours is None or theirs is None:
        return None
    gap = round(ours - theirs, 9)
    return "win" if gap > 0 else "loss" if gap < 0 else "tie"
