"""Pairs: best against worst, and everything dropped is counted."""

import random
from fractions import Fraction

import pytest

from judge import answer_pairs, mean_score
from judge.pairs import Counts, best_and_worst, length_controlled

PROMPTS = [{"id": "p", "prompt": "Sing."}]


def answers(*texts: str, finished: bool = True) -> list[dict]:
    return [
        {"id": f"p.{k}", "prompt_id": "p", "k": k, "text": text, "finished": finished}
        for k, text in enumerate(texts)
    ]


def judged(*scores: list[float | None], owner: str = "p.{}") -> list[dict]:
    return [
        {
            "id": f"{owner.format(i)}.{k}",
            "response_id": owner.format(i),
            "k": k,
            "text": f"critique {k}. Score: {score}",
            "score": score,
            "finished": True,
        }
        for i, row in enumerate(scores)
        for k, score in enumerate(row)
    ]


def nonzero(counts: Counts) -> Counts:
    return {name: count for name, count in counts.items() if count}


def test_best_against_worst() -> None:
    pairs, counts = answer_pairs(PROMPTS, answers("a", "b", "c"), judged([3, 4], [5, None], [1, 2]))
    assert pairs == [
        {
            "id": "p",
            "prompt": "Sing.",
            "chosen": "b",
            "rejected": "c",
            "chosen_score": 5.0,
            "rejected_score": 1.5,
            "chosen_id": "p.1",
            "rejected_id": "p.2",
        }
    ]
    assert nonzero(counts) == {"prompts": 1, "responses": 3, "usable": 3, "pairs": 1}


def test_ties_go_to_the_smallest_k_in_any_row_order() -> None:
    responses, judgements = answers("a", "b", "c", "d"), judged([1], [5], [5], [1])
    for seed in range(10):
        random.Random(seed).shuffle(responses)
        random.Random(seed).shuffle(judgements)
        pairs, _ = answer_pairs(PROMPTS, responses, judgements)
        assert (pairs[0]["chosen_id"], pairs[0]["rejected_id"]) == ("p.1", "p.0")


def test_unscored_answer_is_dropped_not_rejected() -> None:
    pairs, counts = answer_pairs(PROMPTS, answers("a", "b", "c"), judged([4], [None], [3]))
    assert pairs[0]["rejected"] == "c"
    assert nonzero(counts) == {"prompts": 1, "responses": 3, "usable": 2, "unscored": 1, "pairs": 1}


def test_answer_without_any_judgement_is_unscored() -> None:
    assert answer_pairs(PROMPTS, answers("a", "b"), judged([4]))[1]["unscored"] == 1


def test_unfinished_answer_is_never_in_a_pair() -> None:
    responses = answers("a", "b", "c")
    responses[0]["finished"] = False
    pairs, counts = answer_pairs(PROMPTS, responses, judged([5], [4], [3]))
    assert (pairs[0]["chosen"], counts["unfinished"]) == ("b", 1)


def test_equal_means_make_no_pair() -> None:
    assert mean_score([3.1, 3.2, 3.3]) != mean_score([3.2] * 3)  # in the last bit only
    rows = judged([3.1, 3.2, 3.3], [3.2, 3.2, 3.2])
    pairs, counts = answer_pairs(PROMPTS, answers("a", "b"), rows)
    assert (pairs, counts["equal_scores"]) == ([], 1)


@pytest.mark.parametrize("texts", [("a", "a"), ("a", "a\n"), (" a", "a")])
def test_identical_texts_make_no_pair(texts: tuple[str, str]) -> None:
    pairs, counts = answer_pairs(PROMPTS, answers(*texts), judged([5], [1]))
    assert (pairs, counts["identical_texts"]) == ([], 1)


def test_one_usable_answer_makes_no_pair() -> None:
    pairs, counts = answer_pairs(PROMPTS, answers("a", "b"), judged([5], [None]))
    assert (pairs, counts["too_few"]) == ([], 1)


def test_no_rows_at_all() -> None:
    assert answer_pairs([], [], []) == ([], dict.fromkeys(answer_pairs([], [], [])[1], 0))


@pytest.mark.parametrize("field", ["prompt_id", "response_id"])
def test_orphan_is_an_error(field: str) -> None:
    responses, judgements = answers("a"), judged([5])
    (responses if field == "prompt_id" else judgements)[0][field] = "nobody"
    with pytest.raises(ValueError, match=f"its {field} nobody is not among"):
        answer_pairs(PROMPTS, responses, judgements)


def test_random_rows_against_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(300):
        texts = [draw.choice("abc") for _ in range(draw.randint(0, 4))]
        scores = [[draw.choice([None, 1, 2, 2.5]) for _ in range(3)] for _ in texts]
        responses = answers(*texts)
        for response in responses:
            response["finished"] = draw.random() < 0.8
        pairs, counts = answer_pairs(PROMPTS, responses, judged(*scores))
        means = {
            i: sum(map(Fraction, known)) / len(known)
            for i, row in enumerate(scores)
            if (known := [s for s in row if s is not None]) and responses[i]["finished"]
        }
        best = min(means, key=lambda i: (-means[i], i), default=None)
        worst = min(means, key=lambda i: (means[i], i), default=None)
        expected = best is not None and means[best] > means[worst] and texts[best] != texts[worst]
        assert len(pairs) == expected
        if expected:
            assert (pairs[0]["chosen_id"], pairs[0]["rejected_id"]) == (f"p.{best}", f"p.{worst}")
            assert pairs[0]["chosen_score"] > pairs[0]["rejected_score"]
        assert counts["responses"] == counts["usable"] + counts["unscored"] + counts["unfinished"]
        assert (
            counts["prompts"]
            == 1
            == sum(counts[name] for name in ("too_few", "equal_scores", "identical_texts", "pairs"))
        )


def test_a_margin_drops_what_differs_by_less() -> None:
    rows = judged([3], [4])
    assert answer_pairs(PROMPTS, answers("a", "b"), rows, margin=1.0)[1]["pairs"] == 1
    pairs, counts = answer_pairs(PROMPTS, answers("a", "b"), rows, margin=1.01)
    assert (pairs, counts["small_margin"]) == ([], 1)


def test_further_pairs_of_a_prompt_use_each_answer_once() -> None:
    responses, judgements = answers("a", "b", "c", "d", "e"), judged([1], [5], [3], [4], [2])
    pairs, counts = answer_pairs(PROMPTS, responses, judgements, per_prompt=5)
    assert [(row["id"], row["chosen"], row["rejected"]) for row in pairs] == [
        ("p", "b", "a"),
        ("p.2", "d", "e"),
    ]
    assert nonzero(counts) == {"prompts": 1, "responses": 5, "usable": 5, "pairs": 2}


def test_no_further_pair_of_equal_scores() -> None:
    judgements = judged([1], [5], [3], [3])
    assert len(answer_pairs(PROMPTS, answers(*"abcd"), judgements, per_prompt=2)[0]) == 1


def test_length_control_takes_a_short_good_answer_and_a_long_bad_one() -> None:
    responses = answers("long and best", "short", "tiny", "x", "long and nearly worst")
    judgements = judged([5.0], [4.6], [4.4], [1.0], [1.4])

    def chosen(tolerance: float | None) -> tuple[str, str]:
        ((row,), _) = answer_pairs(PROMPTS, responses, judgements, shorter_within=tolerance)
        return row["chosen"], row["rejected"]

    assert chosen(None) == ("long and best", "x")
    assert chosen(0.0) == ("long and best", "x")
    assert chosen(0.1) == ("short", "long and nearly worst")  # 0.4 of the 4 points between them
    assert chosen(0.15) == ("tiny", "long and nearly worst")


def test_length_control_never_prefers_what_scored_lower() -> None:
    draw = random.Random(1)
    for _ in range(300):
        scored = [
            (draw.choice([1.0, 2.0, 2.5, 5.0]), {"text": "x" * draw.randint(1, 9)}) for _ in "abcd"
        ]
        tolerance = draw.choice([0.0, 0.1, 0.3, 0.49])
        (best, chosen), (worst, rejected) = length_controlled(tolerance, scored)
        (highest, first), (lowest, last) = best_and_worst(scored)
        assert (best > worst) == (highest > lowest)
        assert highest - best <= tolerance * (highest - lowest) + 1e-9
        assert worst - lowest <= tolerance * (highest - lowest) + 1e-9
        assert len(chosen["text"]) <= len(first["text"])
        assert len(rejected["text"]) >= len(last["text"])
