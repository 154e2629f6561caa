"""Turns scored answers into preference pairs, best against worst. Knows no model and no files.

What is dropped is counted: unscored is not zero, cut off is not whole, equal is not better.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from judge.complete import Row
from judge.score import mean_score

Counts = dict[str, int]
_ANSWER_COUNTS = (
    *("prompts", "too_few", "equal_scores", "identical_texts", "pairs"),
    *("responses", "unfinished", "unscored", "usable"),
)


def answer_pairs(
    prompts: Sequence[Row], responses: Sequence[Row], judgements: Sequence[Row]
) -> tuple[list[Row], Counts]:
    """Per prompt, the answer with the highest mean score against the one with the lowest.

    Returns rows `{id, prompt, chosen, rejected, chosen_score, rejected_score, chosen_id,
    rejected_id}` under the prompt's id; ties at the top or the bottom go to the smallest k.

    Counts: `responses` = unfinished + unscored + `usable`; `prompts` = too_few (fewer than two
    usable answers) + equal_scores + identical_texts + `pairs`.
    Raises ValueError if a row belongs to a prompt or to a response that is not there.
    """
    answers_of = _grouped(responses, "prompt_id", prompts)
    judgements_of = _grouped(judgements, "response_id", responses)
    counts = Counter(dict.fromkeys(_ANSWER_COUNTS, 0))
    pairs = []
    for prompt in prompts:
        usable = []
        for answer in answers_of[prompt["id"]]:
            score = mean_score(row["score"] for row in judgements_of[answer["id"]])
            if answer["finished"] and score is not None:
                usable.append((score, answer))
                counts["usable"] += 1
            else:
                counts["unscored" if answer["finished"] else "unfinished"] += 1
        outcome, pair = _best_and_worst(prompt, usable)
        counts[outcome] += 1
        pairs += pair
    return pairs, dict(counts) | {"prompts": len(prompts), "responses": len(responses)}


def _grouped(rows: Iterable[Row], field: str, owners: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each owner in order of k; an owner without rows has none."""
    groups: dict[str, list[Row]] = {owner["id"]: [] for owner in owners}
    for row in rows:
        if row[field] not in groups:
            raise ValueError(
                f"row {row['id']}: its {field} {row[field]} is not among the rows given"
            )
        groups[row[field]].append(row)
    return {owner: sorted(group, key=lambda row: row["k"]) for owner, group in groups.items()}


def _best_and_worst(prompt: Row, scored: list[tuple[float, Row]]) -> tuple[str, list[Row]]:
    """What a prompt is counted as, and its pair if it yields one."""
    if len(scored) < 2:
        return "too_few", []
    # Rounded: the same mean out of more or fewer judgements may differ in its last bit.
    # `max` and `min` take the first of equals, and that is the one with the smallest k.
    best = max(scored, key=lambda entry: round(entry[0], 9))
    worst = min(scored, key=lambda entry: round(entry[0], 9))
    if best is worst:  # all are equal, and both took the first
        return "equal_scores", []
    if best[1]["text"].strip() == worst[1]["text"].strip():
        return "identical_texts", []
    return "pairs", [_pair(prompt["id"], prompt["prompt"], best, worst)]


def _pair(
    identity: str, prompt: str, chosen: tuple[float, Row], rejected: tuple[float, Row]
) -> Row:
    return {
        "id": identity,
        "prompt": prompt,
        "chosen": chosen[1]["text"],
        "rejected": rejected[1]["text"],
        "chosen_score": chosen[0],
        "rejected_score": rejected[0],
        "chosen_id": chosen[1]["id"],
        "rejected_id": rejected[1]["id"],
    }
