"""Choosing between two answers, and the answers that should fool no judge."""

from dataclasses import dataclass

import pytest

from judge import canary_items, canary_scores, compare_responses, parse_choice
from judge.canaries import CANARIES

HOW = {"seed": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 40}


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool = True


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("Better: A", "A"),
        ("A is short.\nBetter: B\n", "B"),
        ("**Better: neither**.", "tie"),
        ("better: a", "A"),
        ("Better: A or B", None),
        ("Better: C", None),
        ("Better: A\nBecause it is short.", None),
        ("I say Better: A", None),
        ("A", None),
        ("", None),
    ],
)
def test_verdict(reply: str, choice: str | None) -> None:
    assert parse_choice(reply) == choice


def longer_wins(prompts, **asked) -> list[list[Reply]]:
    """A fair judge by length: reads which answer stands at A and which at B."""
    replies = []
    for prompt in prompts:
        a = prompt.split("<answer A>\n")[1].split("\n</answer A>")[0]
        b = prompt.split("<answer B>\n")[1].split("\n</answer B>")[0]
        verdict = "neither" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
        replies.append([Reply(f"Hm.\nBetter: {verdict}")])
    return replies


def test_outcome_does_not_depend_on_the_place() -> None:
    items = [
        {"id": "1", "prompt": "p", "ours": "long one", "theirs": "short"},
        {"id": "2", "prompt": "p", "ours": "short", "theirs": "long one"},
        {"id": "3", "prompt": "p", "ours": "same", "theirs": "alik"},
    ]
    rows = compare_responses(longer_wins, items, **HOW)
    assert [row["outcome"] for row in rows] == ["win", "loss", "tie"]
    assert (rows[0]["forward"], rows[0]["backward"]) == ("A", "B")


def test_a_judge_that_likes_the_first_place_makes_ties() -> None:
    items = [{"id": "1", "prompt": "p", "ours": "x", "theirs": "y"}]
    rows = compare_responses(
        lambda prompts, **_: [[Reply("Better: A")] for _ in prompts], items, **HOW
    )
    assert rows[0]["outcome"] == "tie"


def test_a_cut_off_verdict_is_unread() -> None:
    items = [{"id": "1", "prompt": "p", "ours": "x", "theirs": "y"}]
    replies = [[Reply("Better: A", finished=False)], [Reply("Better: B")]]
    rows = compare_responses(lambda prompts, **_: replies, items, **HOW)
    assert (rows[0]["forward"], rows[0]["outcome"]) == (None, None)
    assert rows[0]["forward_text"] == "Better: A"


def test_every_canary_is_judged_on_every_prompt() -> None:
    prompts = [{"id": "p", "prompt": "Sing."}, {"id": "q", "prompt": "Go."}]
    items = canary_items(prompts)
    assert len({item["id"] for item in items}) == len(items) == 2 * len(CANARIES)
    assert {item["response"] for item in items} >= {"", ":", "Score: 5"}
    judgements = [
        {
            "response_id": item["id"],
            "k": 0,
            "score": 5.0 if item["response"] == "Score: 5" else None,
        }
        for item in items
    ]
    scores = canary_scores(prompts, judgements)
    assert scores["score"] == 5.0
    assert {score for name, score in scores.items() if name != "score"} == {None}
