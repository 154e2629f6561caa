"""Turns judgements into preferences between judgements: Meta-Rewarding (Wu et al. 2024,
arXiv 2407.19594). Knows no model: a meta-judge is a callable that completes prompts.

```
  a prompt's answers ─▶ the one whose judgements differ most ─▶ its judgements, two at a time,
  in both orders, to the meta-judge ─▶ Elo ─▶ the best judgement against the worst
```
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from statistics import pvariance

from judge.complete import Row
from judge.eft import agreeing
from judge.elo import elo
from judge.metrics import Choice
from judge.ranked import answer_id, by_response
from judge.rubric import Rubric, fill
from judge.score import said_score

Counts = dict[str, int]
OUTCOMES = ("of_one_mind", "undecided", "pairs")


def disputed_answers(
    prompts: Sequence[Row], responses: Sequence[Row], judgements: Sequence[Row]
) -> list[Row]:
    """The most disputed answer of each prompt, with its `prompt` and its `judgements`."""
    text_of = {row["id"]: row["prompt"] for row in prompts}
    return [
        answer | {"prompt": text_of[answer["prompt_id"]], "judgements": found}
        for answer, found in most_disputed(text_of, responses, judgements)
    ]


def judgement_duels(rubric: Rubric, disputed: Iterable[Row]) -> list[Row]:
    """The judgements of each disputed answer, two at a time, as items for `compare_in_parts`: the
    meta-judge, asked greedily, with a prompt of `load_comparison`.
    """
    return [
        {
            "id": f"{row['id']}.{a}-{b}",
            "prompt": rubric.render(row["prompt"], row["text"]),
            "ours": row["judgements"][a]["text"],
            "theirs": row["judgements"][b]["text"],
        }
        for row in disputed
        for a, b in combinations(range(len(row["judgements"])), 2)
    ]


def judgement_pairs(
    rubric: Rubric, disputed: Sequence[Row], verdicts: Sequence[Row], prompts: int
) -> tuple[list[Row], Counts]:
    """Of each disputed answer the best judgement against the worst, by the verdicts on all duels.

    prompts: how many were looked at.
    Returns pair rows as `answer_pairs` does, with the judge's prompt as the prompt, the judgements'
    own scores and `chosen_id`, `rejected_id` of the judgements. Counts: `prompts` = of_one_mind (no
    answer with two different scores) + undecided (the meta-judge prefers none) + `pairs`; beside
    them its verdicts: `comparisons`, of which `unread`, and `first_wins` and `second_wins`.
    """
    weights = position_weights(verdicts)
    verdict_of = {row["id"]: row for row in verdicts}
    pairs = [
        pair for row in disputed if (pair := _pair(row, _wins(row, verdict_of, weights), rubric))
    ]
    counts = {
        "prompts": prompts,
        "of_one_mind": prompts - len(disputed),
        "undecided": len(disputed) - len(pairs),
        "pairs": len(pairs),
    }
    return pairs, counts | _told(verdicts)


def most_disputed(
    prompts: Mapping[str, str], responses: Sequence[Row], judgements: Sequence[Row]
) -> list[tuple[Row, list[Row]]]:
    """Of each of these prompts the finished answer whose scores vary most, with its scored
    judgements; prompts without two different scores of one answer have none.
    """
    judgements_of = by_response([row for row in judgements if row["score"] is not None])
    best: dict[str, tuple[float, Row, list[Row]]] = {}
    for answer in responses:
        found = judgements_of.get(answer["id"], [])
        if answer["prompt_id"] in prompts and answer["finished"] and len(found) > 1:
            spread = pvariance([row["score"] for row in found])
            if spread > best.get(answer["prompt_id"], (0.0,))[0]:
                best[answer["prompt_id"]] = spread, answer, found
    return [(best[name][1], best[name][2]) for name in prompts if name in best]


def position_weights(verdicts: Sequence[Row]) -> tuple[float, float]:
    """What a win counts that was shown first, and one that was shown second: each place is worth
    the other's share of the wins, so that a meta-judge that likes a place gains nothing by it.
    """
    first, second = _places(verdicts)
    if not first + second:
        return 0.5, 0.5
    return second / (first + second), first / (first + second)


def _places(verdicts: Sequence[Row]) -> tuple[int, int]:
    """How often what stood first, and what stood second, was preferred."""
    said: Counter[Choice | None] = Counter()
    for row in verdicts:
        said.update((row["forward"], row["backward"]))
    return said["A"], said["B"]


def _wins(
    row: Row, verdict_of: Mapping[str, Row], weights: tuple[float, float]
) -> dict[tuple[int, int], float]:
    """The weighted wins among an answer's judgements: (winner, loser) → weight."""
    wins: Counter[tuple[int, int]] = Counter()
    of_place = dict(zip("AB", weights))
    for a, b in combinations(range(len(row["judgements"])), 2):
        verdict = verdict_of[f"{row['id']}.{a}-{b}"]
        # forward shows a first, as A; backward shows b first
        for choice, shown in ((verdict["forward"], (a, b)), (verdict["backward"], (b, a))):
            if choice in of_place:
                winner = shown[0] if choice == "A" else shown[1]
                wins[winner, a + b - winner] += of_place[choice]  # type: ignore[assignment]
    return dict(wins)


def _pair(row: Row, wins: Mapping[tuple[int, int], float], rubric: Rubric) -> Row | None:
    """The judgement of the highest Elo score against that of the lowest, if they differ."""
    judgements = row["judgements"]
    scores = [round(score, 6) for score in elo(len(judgements), wins)]
    chosen, rejected = (judgements[scores.index(pick(scores))] for pick in (max, min))
    if max(scores) == min(scores) or chosen["text"] == rejected["text"]:
        return None
    return {
        "id": f"{row['id']}.judge",
        "prompt": rubric.render(row["prompt"], row["text"]),
        "chosen": chosen["text"],
        "rejected": rejected["text"],
        "chosen_score": chosen["score"],
        "rejected_score": rejected["score"],
        "chosen_id": chosen["id"],
        "rejected_id": rejected["id"],
    }


def _told(verdicts: Sequence[Row]) -> Counts:
    first, second = _places(verdicts)
    unread = sum((row["forward"] is None) + (row["backward"] is None) for row in verdicts)
    return {
        "comparisons": 2 * len(verdicts),
        "unread": unread,
        "first_wins": first,
        "second_wins": second,
    }


def meta_examples(
    rubric: Rubric, template: str, ranked: Sequence[Row], judgements: Sequence[Row]
) -> list[tuple[str, str]]:
    """What a meta-judge can learn from people's ranks: (its prompt, its verdict), both orders.

    ranked, judgements: as in `make_eft`. In a round that agrees with people a judgement is better
    than that of the same answer in a round that does not, where the scores they say differ.
    """
    judgements_of = by_response(judgements)
    examples = []
    for row in ranked:
        answers = [judgements_of.get(answer_id(row, i), []) for i in range(len(row["responses"]))]
        rounds = [each for each in zip(*answers) if None not in [j["score"] for j in each]]
        right = [each for each in rounds if agreeing(row, each)]
        wrong = [each for each in rounds if not agreeing(row, each)]
        for agreed, other in product(right, wrong):
            for answer, good, bad in zip(row["responses"], agreed, other):
                if said_score(good) != said_score(bad):
                    shown = rubric.render(row["prompt"], answer["text"])
                    examples += _both_orders(template, shown, good["text"], bad["text"])
    return list(dict.fromkeys(examples))


def _both_orders(template: str, prompt: str, good: str, bad: str) -> list[tuple[str, str]]:
    asked = partial(fill, template, prompt=prompt)
    return [
        (asked(first=good, second=bad), "Better: A"),
        (asked(first=bad, second=good), "Better: B"),
    ]
