"""EFT rows: only critiques that order the answers as people did, and no score that dominates."""

import random
from collections import Counter

import pytest

from judge import agreeing, make_eft, metrics, ranked_items, ranked_sets, rebalance


def ranked(name: str, *ranks: int) -> dict:
    texts = [{"text": f"{name} answer {i}", "rank": rank} for i, rank in enumerate(ranks)]
    return {"id": name, "prompt": f"Task {name}", "responses": texts}


def judgements(row: dict, *rounds: list[float | None]) -> list[dict]:
    """One list of scores a round, a score for each answer."""
    return [
        {
            "id": f"{row['id']}.{i}.{k}",
            "response_id": f"{row['id']}.{i}",
            "k": k,
            "text": f"critique {k}. Score: {score}",
            "score": score,
            "finished": True,
        }
        for k, scores in enumerate(rounds)
        for i, score in enumerate(scores)
    ]


def test_items_name_the_answers() -> None:
    row = ranked("q", 1, 0)
    assert ranked_items([row]) == [
        {"id": "q.0", "prompt": "Task q", "response": "q answer 0"},
        {"id": "q.1", "prompt": "Task q", "response": "q answer 1"},
    ]


def test_sets_hold_means_and_ranks() -> None:
    row = ranked("q", 1, 0, 2)
    rows = judgements(row, [1, 5, None], [2, None, None])
    random.Random(0).shuffle(rows)
    assert ranked_sets([row], rows) == [([1.5, 5.0, None], [1, 0, 2])]
    assert metrics.pairwise_accuracy(ranked_sets([row], rows)) == 1 / 3


@pytest.mark.parametrize(
    ("ranks", "scores", "agree"),
    [
        ((0, 1, 2), (5, 3, 1), True),
        ((2, 0, 1), (1, 5, 3), True),
        ((0, 1, 2), (5, 1, 3), False),
        ((0, 1, 2), (5, 3, 3), False),  # a tie is not people's order
        ((0, 1, 1), (5, 3, 4), True),  # people saw no difference there
        ((0, 0), (5, 3), False),  # nothing to agree with
        ((0, 1), (5, None), False),
    ],
)
def test_agreement(ranks: tuple, scores: tuple, agree: bool) -> None:
    row = ranked("q", *ranks)
    assert agreeing(row, judgements(row, list(scores))) is agree


def test_first_agreeing_round_is_kept_whole() -> None:
    row = ranked("q", 0, 1)
    rows, counts = make_eft([row], judgements(row, [3, 3], [None, 1], [4, 2], [5, 1]), seed=0)
    assert rows == [
        {
            "id": f"q.{i}.2",
            "prompt": "Task q",
            "response": f"q answer {i}",
            "judgement": f"critique 2. Score: {score}",
            "score": score,
        }
        for i, score in enumerate([4, 2])
    ]
    assert counts == {
        "sets": 1, "unranked": 0, "unscored": 0, "disagreeing": 0, "agreeing": 1,
        "rebalanced_away": 0, "beyond_most": 0, "rows": 2,
    }  # fmt: skip


def test_what_was_said_counts_not_what_was_expected() -> None:
    """What is learnt is the text, so two answers that were both given a 4 do not agree with people,
    and rows that end in the same number are of the same score.
    """
    sets = [ranked(f"q{i}", 0, 1) for i in range(9)]
    given = [row for entry in sets for row in judgements(entry, [4, 4], [4, 3])]
    given += judgements(last := ranked("last", 0, 1), [4, 2])
    plain = make_eft([*sets, last], given, seed=0)
    for n, row in enumerate(given):
        row |= {"said": row["score"], "score": row["score"] - 0.4 - 0.01 * (n % 9) - 0.1 * (n % 2)}
    assert make_eft([*sets, last], given, seed=0) == plain
    assert Counter(row["score"] for row in plain[0]) == {4: 9, 3: 9, 2: 1}


def test_no_more_rows_than_asked_for() -> None:
    sets = [ranked(f"q{i}", 0, 1) for i in range(4)]
    given = [row for entry in sets for row in judgements(entry, [4, 2])]
    rows, counts = make_eft(sets, given, seed=0)
    fewer, cut = make_eft(sets, given, seed=0, most=5)
    assert fewer == rows[:5] and len(rows) == 8
    assert (cut["rows"], cut["beyond_most"], counts["beyond_most"]) == (5, 3, 0)


def test_every_set_is_counted_once() -> None:
    draw = random.Random(1)
    sets = [ranked(f"q{i}", *(draw.randint(0, 2) for _ in range(3))) for i in range(200)]
    scores = [None, 1, 2, 3, 4, 4, 4, 5]
    given = [
        row
        for entry in sets
        for row in judgements(entry, *[draw.choices(scores, k=3) for _ in range(3)])
    ]
    rows, counts = make_eft(sets, given, seed=0)
    assert (rows, counts) == make_eft(sets, given[::-1], seed=0)
    outcomes = [counts[name] for name in ("unranked", "unscored", "disagreeing", "agreeing")]
    assert sum(outcomes) == counts["sets"] == 200 and min(outcomes) > 0
    assert counts["rows"] == len(rows) == 3 * counts["agreeing"] - counts["rebalanced_away"]


def test_sets_without_judgements_are_unscored() -> None:
    assert make_eft([ranked("q", 0, 1)], [], seed=0)[1]["unscored"] == 1


def scored_rows(counts: dict[float, int]) -> list[dict]:
    rows = [{"id": f"{score}-{i}", "score": score} for score, n in counts.items() for i in range(n)]
    random.Random(0).shuffle(rows)
    return rows


def test_most_common_score_comes_down_to_the_second() -> None:
    rows = scored_rows({4: 60, 3: 20, 5: 15, 1: 2})
    kept = rebalance(rows, seed=0)
    assert Counter(row["score"] for row in kept) == {4: 20, 3: 20, 5: 15, 1: 2}
    assert kept == [row for row in rows if row in kept]  # the order stays
    assert kept == rebalance(rows, seed=0) != rebalance(rows, seed=1)


@pytest.mark.parametrize("counts", [{}, {4: 7}, {4: 7, 2: 7}, {4: 7, 2: 7, 1: 3}])
def test_nothing_to_rebalance(counts: dict) -> None:
    rows = scored_rows(counts)
    assert rebalance(rows, seed=0) == rows
