"""What scores look like: worked by hand, and what must not move them."""

import random
from itertools import combinations
from statistics import stdev

import pytest
from scipy import stats

from judge.bootstrap import bootstrap_interval, means
from judge.correlation import rho
from judge.signs import Answer, rank_length, ranked_groups, response_groups, signs

GROUPS = [
    [Answer(3, [5, 5, 4]), Answer(9, [1, 1, None])],
    [Answer(4, [3, 3, 3]), Answer(4, [3, None, None])],
    [Answer(2, [None, None, None]), Answer(5, [4.5, 5, 5])],
]


def test_by_hand():
    found = signs(GROUPS, high=5.0)
    assert found["histogram"] == {"1": 2, "3": 4, "4": 2, "5": 4}  # 4.5 is halfway: to the even
    assert found["commonest_score"] == 4 / 12
    assert found["full_score"] == 4 / 12
    assert found["unparsed"] == 6 / 18
    assert found["mean_score"] == pytest.approx((14 + 2 + 9 + 3 + 14.5) / 12)
    assert found["tied_sets"] == 1 / 2  # of the third set one answer alone has a score
    assert found["tied_pairs"] == 1 / 2
    # pairs of judgements: 5-5, 5-4, 5-4 · 1-1 · 3-3 three times · 4.5-5, 4.5-5, 5-5
    assert found["same_again"] == 6 / 10
    deviations = [stdev([5, 5, 4]), 0, 0, stdev([4.5, 5, 5])]
    assert found["spread"] == pytest.approx(sum(deviations) / 4)
    assert found["score_length"] == -1.0  # the first set alone has two lengths and two scores


def test_one_judgement_of_each_cannot_agree_with_itself():
    found = signs([[Answer(1, [3]), Answer(2, [4])]], high=5.0)
    assert found["same_again"] is None and found["spread"] is None
    assert found["score_length"] == 1.0 and found["tied_sets"] == 0.0


def test_silence_is_no_score():
    found = signs([[Answer(1, [None]), Answer(2, [None])]], high=5.0)
    assert found["unparsed"] == 1.0 and found["histogram"] == {}
    known = {key for key, value in found.items() if value not in (None, {})}
    assert known == {"unparsed", "unparsed_ci"}


def test_answers_of_one_length_say_nothing_about_length():
    assert signs([[Answer(4, [1]), Answer(4, [5])]], high=5.0)["score_length"] is None
    # but equal scores of different lengths do: they do not follow it
    assert signs([[Answer(1, [3]), Answer(4, [3])]], high=5.0)["score_length"] == 0.0


def test_score_and_length_are_compared_within_an_instruction():
    """Long answers to long questions are no bias: pooled, these would look like one."""
    groups = [[Answer(base + 1, [base]), Answer(base, [base + 1])] for base in range(5)]
    assert signs(groups, high=5.0)["score_length"] == -1.0


def test_the_groups_of_both_tables():
    ranked = [{"id": "r", "responses": [{"text": "a b", "rank": 1}, {"text": "c", "rank": 0}]}]
    judged = [
        {"response_id": f"r.{i}", "k": k, "score": score}
        for i, k, score in ((0, 0, 4), (0, 1, None), (1, 0, 5))
    ]
    assert ranked_groups(ranked, judged) == [[Answer(2, [4, None]), Answer(1, [5])]]
    responses = [
        {"id": "r.0", "prompt_id": "r", "text": "a b"},
        {"id": "r.1", "prompt_id": "r", "text": ""},
        {"id": "s.0", "prompt_id": "s", "text": "x"},
    ]
    found = response_groups(responses, judged)
    assert found == [[Answer(2, [4, None]), Answer(0, [5])], [Answer(1, [])]]
    assert rank_length(ranked)["rank_length"] == -1.0  # the shorter one is people's best


def test_means_are_those_of_one_tally_alone():
    draw = random.Random(0)
    tallies = {
        name: [(draw.random(), float(draw.randint(0, 2))) for _ in range(30)] for name in "ab"
    } | {"none": [(0.0, 0.0)] * 30}
    found = means(tallies, seed=3, level=0.9)
    for name, tally in tallies.items():
        interval = bootstrap_interval(tally, 3, 0.9)
        assert found[f"{name}_ci"] == (interval and pytest.approx(interval))
    assert found["none"] is None
    assert found["a"] == pytest.approx(
        sum(s for s, _ in tallies["a"]) / sum(n for _, n in tallies["a"])
    )
    assert means({"a": []}) == {"a": None, "a_ci": None}


def test_ranks_with_ties_are_those_of_scipy():
    draw = random.Random(1)
    for _ in range(50):
        size = draw.randint(2, 9)
        xs, ys = ([draw.randint(0, 3) for _ in range(size)] for _ in range(2))
        if len(set(xs)) > 1 and len(set(ys)) > 1:
            assert rho(xs, ys) == pytest.approx(stats.spearmanr(xs, ys).statistic)


def test_tied_pairs_by_brute_force():
    draw = random.Random(2)
    groups = [
        [Answer(1, [draw.choice([None, 1, 2])]) for _ in range(draw.randint(1, 5))]
        for _ in range(20)
    ]
    scored = [[a.scores[0] for a in g if a.scores[0] is not None] for g in groups]
    pairs = [pair for scores in scored for pair in combinations(scores, 2)]
    assert signs(groups, 5.0)["tied_pairs"] == sum(a == b for a, b in pairs) / len(pairs)
