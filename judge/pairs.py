"""Turns scored answers into preference pairs, best against worst. Knows no model and no files.

What is dropped is counted: unscored is not zero, cut off is not whole, equal is not better.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from judge.complete import Row
from judge.score import mean_score

Counts = dict[str, int]
Scored = tuple[float, Row]  # an answer, behind its mean score
Choose = Callable[[Sequence[Scored]], tuple[Scored, Scored]]  # chosen and rejected
NO_PAIR = ("too_few", "equal_scores", "small_margin", "identical_texts")  # why a prompt has none
_ANSWER_COUNTS = (
    *("prompts", *NO_PAIR, "pairs"),
    *("responses", "unfinished", "unscored", "usable"),
)


def answer_pairs(
    prompts: Sequence[Row],
    responses: Sequence[Row],
    judgements: Sequence[Row],
    *,
    per_prompt: int = 1,
    margin: float = 0.0,
    shorter_within: float | None = None,
) -> tuple[list[Row], Counts]:
    """Per prompt, the answer with the highest mean score against the one with the lowest.

    per_prompt: pairs of a prompt at most; the next one is chosen from what the last one left.
    margin: scores that differ by less make no pair; equal ones never do.
    shorter_within: the ρ of `length_controlled`, which then chooses.

    Returns rows `{id, prompt, chosen, rejected, chosen_score, rejected_score, chosen_id,
    rejected_id}` under the prompt's id (its second pair under `id.2`); ties at the top or the
    bottom go to the smallest k.

    Counts: `responses` = unfinished + unscored + `usable`; `prompts` = too_few (fewer than two
    usable answers) + equal_scores + small_margin + identical_texts + those with `pairs`.
    Raises ValueError if a row belongs to a prompt or to a response that is not there.
    """
    answers_of = _grouped(responses, "prompt_id", prompts)
    judgements_of = _grouped(judgements, "response_id", responses)
    choose: Choose = best_and_worst
    if shorter_within is not None:
        choose = partial(length_controlled, shorter_within)
    counts = Counter(dict.fromkeys(_ANSWER_COUNTS, 0))
    pairs = []
    for prompt in prompts:
        usable = []
        for answer in answers_of[prompt["id"]]:
            score = mean_score(row["score"] for row in judgements_of[answer["id"]])
            if answer["finished"] and score is not None:
                # rounded: the same mean of more or fewer judgements may differ in its last bit
                usable.append((round(score, 9), answer))
                counts["usable"] += 1
            else:
                counts["unscored" if answer["finished"] else "unfinished"] += 1
        made, outcome = _pairs_of(prompt, usable, choose, per_prompt, margin)
        counts[outcome] += len(made) or 1
        pairs += made
    return pairs, dict(counts) | {"prompts": len(prompts), "responses": len(responses)}


def best_and_worst(scored: Sequence[Scored]) -> tuple[Scored, Scored]:
    """The highest score and the lowest; of equals the first."""
    return max(scored, key=lambda entry: entry[0]), min(scored, key=lambda entry: entry[0])


def length_controlled(tolerance: float, scored: Sequence[Scored]) -> tuple[Scored, Scored]:
    """The shortest of the good answers and the longest of the bad ones (Meta-Rewarding, section
    2.2, with its ρ): good and bad are those within `tolerance` of the way from the highest score
    to the lowest, and back. At 0 it only breaks ties.
    """
    (highest, _), (lowest, _) = best_and_worst(scored)
    reach = tolerance * (highest - lowest)
    good = [entry for entry in scored if entry[0] >= round(highest - reach, 9)]
    bad = [entry for entry in scored if entry[0] <= round(lowest + reach, 9)]
    return min(good, key=_length), max(bad, key=_length)


def _length(entry: Scored) -> int:
    return len(entry[1]["text"])


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


def _pairs_of(
    prompt: Row, scored: Sequence[Scored], choose: Choose, most: int, margin: float
) -> tuple[list[Row], str]:
    """A prompt's pairs, and what it is counted as."""
    pairs: list[Row] = []
    while len(pairs) < most:
        if problem := _nothing_to_learn(scored, choose, margin):
            return pairs, "pairs" if pairs else problem
        chosen, rejected = choose(scored)
        name = f"{prompt['id']}.{len(pairs) + 1}" if pairs else prompt["id"]
        pairs.append(_pair(name, prompt["prompt"], chosen, rejected))
        scored = [entry for entry in scored if entry is not chosen and entry is not rejected]
    return pairs, "pairs"


def _nothing_to_learn(scored: Sequence[Scored], choose: Choose, margin: float) -> str | None:
    """Why these answers make no pair, if they do not."""
    if len(scored) < 2:
        return "too_few"
    (best, chosen), (worst, rejected) = choose(scored)
    if best <= worst:
        return "equal_scores"
    if best - worst < margin:
        return "small_margin"
    same = chosen["text"].strip() == rejected["text"].strip()
    return "identical_texts" if same else None


def _pair(identity: str, prompt: str, chosen: Scored, rejected: Scored) -> Row:
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
