"""Lets a judge choose between two answers, shown in both orders. Knows no model."""

import re
from collections.abc import Sequence
from pathlib import Path

from judge.complete import Complete, Row
from judge.metrics import Choice, outcome
from judge.rubric import PROMPTS, fill, read_template, require_places

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
