"""Makes evaluation fine-tuning rows: critiques whose scores order answers as people did.

Knows no model: the judgements are there already. Every row that is left out is counted.
"""

import random
from collections import Counter
from collections.abc import Sequence

from judge.complete import Row
from judge.metrics import exact_match
from judge.ranked import answer_id, by_response, ranks
from judge.score import said_score

Counts = dict[str, int]


def make_eft(
    ranked: Sequence[Row], judgements: Sequence[Row], *, seed: int, most: int | None = None
) -> tuple[list[Row], Counts]:
    """EFT rows `{id, prompt, response, judgement, score}` out of judged ranked answers.

    ranked: rows `{id, prompt, responses: [{text, rank}]}`; judgements: those of `ranked_items`, k
    for each answer, by the scores that they said, for their texts are what is learnt. Round k of an
    instruction is the k-th judgement of each of its answers; its first round that agrees with
    people is kept, whole. Then the scores are rebalanced, and of the rows the first `most` kept.

    Counts: `sets` = unranked (no two answers differ in rank) + unscored (no round has all scores)
    + disagreeing + `agreeing`; `rows` = judgements of agreeing rounds − `rebalanced_away`
    − `beyond_most`.
    """
    judgements_of = by_response(judgements)
    counts = Counter(dict.fromkeys(("sets", "unranked", "unscored", "disagreeing", "agreeing"), 0))
    kept: list[Row] = []
    for row in ranked:
        answers = [judgements_of.get(answer_id(row, i), []) for i in range(len(row["responses"]))]
        scored = [round_ for round_ in zip(*answers) if None not in [j["score"] for j in round_]]
        agreed = next((round_ for round_ in scored if agreeing(row, round_)), None)
        counts.update(("sets", _outcome(row, scored, agreed)))
        if agreed is not None:
            kept += [_eft_row(row, i, judgement) for i, judgement in enumerate(agreed)]
    balanced = rebalance(kept, seed)
    rows = balanced[:most]
    left_out = {
        "rebalanced_away": len(kept) - len(balanced),
        "beyond_most": len(balanced) - len(rows),
    }
    return rows, dict(counts) | left_out | {"rows": len(rows)}


def agreeing(ranked: Row, judgements: Sequence[Row]) -> bool:
    """Whether one judgement for each answer, in order, puts all of them as people did, by the
    scores that were said.

    Answers of equal rank may have any scores; a set in which people saw no difference never agrees.
    """
    return exact_match([([said_score(row) for row in judgements], ranks(ranked))]) == 1


def rebalance(rows: Sequence[Row], seed: int) -> list[Row]:
    """Leaves out rows of the most common score until it is no more common than the second.

    Else a judge learns to say that score and little more. Drawn by the seed; the order stays. Rows
    of one score only are all kept: nothing is there to balance them with.
    """
    places: dict[float, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["score"], []).append(place)
    if len(places) < 2:
        return list(rows)
    second, first = sorted(places.values(), key=len)[-2:]
    surplus = random.Random(f"{seed}/rebalance").sample(first, len(first) - len(second))
    left_out = set(surplus)
    return [row for place, row in enumerate(rows) if place not in left_out]


def _outcome(row: Row, scored: Sequence[object], agreed: object | None) -> str:
    if len(set(ranks(row))) < 2:
        return "unranked"
    if not scored:
        return "unscored"
    return "disagreeing" if agreed is None else "agreeing"


def _eft_row(row: Row, i: int, judgement: Row) -> Row:
    return {
        "id": judgement["id"],
        "prompt": row["prompt"],
        "response": row["responses"][i]["text"],
        "judgement": judgement["text"],
        "score": said_score(judgement),
    }
