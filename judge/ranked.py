"""Brings ranked human answers and judgements of them together. Knows no model and no file."""

from collections.abc import Sequence

from judge.complete import Row
from judge.metrics import RankedSet
from judge.score import mean_score


def ranked_items(ranked: Sequence[Row]) -> list[Row]:
    """The answers of rows `{id, prompt, responses: [{text, rank}]}` as items to be judged."""
    return [
        {"id": answer_id(row, i), "prompt": row["prompt"], "response": response["text"]}
        for row in ranked
        for i, response in enumerate(row["responses"])
    ]


def ranked_sets(ranked: Sequence[Row], judgements: Sequence[Row]) -> list[RankedSet]:
    """Per row, the mean score of each answer beside its rank: what `judge.metrics` measures."""
    judgements_of = by_response(judgements)
    return [
        (
            [
                mean_score(row["score"] for row in judgements_of.get(answer_id(entry, i), []))
                for i in range(len(entry["responses"]))
            ],
            ranks(entry),
        )
        for entry in ranked
    ]


def ranks(row: Row) -> list[int]:
    """The answers' ranks, in the answers' order."""
    return [response["rank"] for response in row["responses"]]


def answer_id(row: Row, i: int) -> str:
    """The id under which the i-th answer of a ranked row is judged."""
    return f"{row['id']}.{i}"


def by_response(judgements: Sequence[Row]) -> dict[str, list[Row]]:
    """The judgements of each response, in order of k."""
    groups: dict[str, list[Row]] = {}
    for judgement in sorted(judgements, key=lambda row: row["k"]):
        groups.setdefault(judgement["response_id"], []).append(judgement)
    return groups
