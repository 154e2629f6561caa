"""Meta-Rewarding: which judgements become a pair, and that a place alone wins nothing."""

import math
import random
from itertools import permutations
from statistics import pvariance

import pytest
from test_judge_compare import Reply

from judge import load_rubric
from judge.compare import compare_responses, load_comparison
from judge.elo import PRIOR, elo
from judge.meta import (
    disputed_answers,
    judgement_duels,
    judgement_pairs,
    meta_examples,
    most_disputed,
    position_weights,
)
from judge.ranked import ranked_items

RUBRIC, TEMPLATE = load_rubric("additive_short"), load_comparison("meta_short")
PROMPTS = [{"id": "p", "prompt": "Sing."}, {"id": "q", "prompt": "Dance."}]


def answer(identity: str, text: str = "la", finished: bool = True) -> dict:
    owner = identity.split(".")[0]
    return {"id": identity, "prompt_id": owner, "k": 0, "text": text, "finished": finished}


def judged(owner: str, *scores: float | None, said: str = "so") -> list[dict]:
    return [
        {"id": f"{owner}.{k}", "response_id": owner, "k": k, "text": f"{said} {s}", "score": s}
        for k, s in enumerate(scores)
    ]


class Meta:
    """A meta-judge by a rule: sees the two judgements, says A, B or neither."""

    def __init__(self, rule) -> None:
        self.rule, self.asked = rule, 0

    def __call__(self, prompts, **how):
        self.asked += len(prompts)
        replies = []
        for prompt in prompts:
            first, second = prompt.split("\nA: ")[1].split("\nWhich")[0].split("\nB: ")
            replies.append([Reply(f"Better: {self.rule(first, second)}")])
        return replies


def run(rule, responses, judgements, most=None):
    ask = Meta(rule)
    how = {"seed": 0, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 9}
    disputed = disputed_answers(PROMPTS[:most], responses, judgements)
    duels = judgement_duels(RUBRIC, disputed)
    verdicts = compare_responses(ask, duels, template=TEMPLATE, **how)
    pairs, counts = judgement_pairs(RUBRIC, disputed, verdicts, len(PROMPTS[:most]))
    assert counts["comparisons"] == ask.asked
    assert counts["prompts"] == counts["of_one_mind"] + counts["undecided"] + counts["pairs"]
    return pairs, counts


def lower(first: str, second: str) -> str:
    """Prefers the judgement that ends in the lower score."""
    a, b = (float(text.split()[-1]) for text in (first, second))
    return "neither" if a == b else "A" if a < b else "B"


def test_the_preferred_judgement_is_chosen_whatever_its_score():
    pairs, counts = run(lower, [answer("p.0")], judged("p.0", 3.0, 5.0, 1.0))
    assert pairs == [
        {
            "id": "p.0.judge",
            "prompt": RUBRIC.render("Sing.", "la"),
            "chosen": "so 1.0",
            "rejected": "so 5.0",
            "chosen_score": 1.0,
            "rejected_score": 5.0,
            "chosen_id": "p.0.2",
            "rejected_id": "p.0.1",
        }
    ]
    assert counts == {
        "prompts": 2, "of_one_mind": 1, "undecided": 0, "pairs": 1,
        "comparisons": 6, "unread": 0, "first_wins": 3, "second_wins": 3,
    }  # fmt: skip


@pytest.mark.parametrize("place", ["A", "B", "neither"])
def test_a_meta_judge_that_likes_a_place_decides_nothing(place):
    pairs, counts = run(lambda a, b: place, [answer("p.0")], judged("p.0", 3.0, 5.0, 1.0))
    assert (pairs, counts["undecided"]) == ([], 1)


def test_the_weights_take_a_leaning_out():
    """One that prefers the first in doubt, and the lower one otherwise, still finds the lowest."""

    def leaning(a: str, b: str) -> str:
        return "A" if abs(float(a.split()[-1]) - float(b.split()[-1])) < 3 else lower(a, b)

    pairs, counts = run(leaning, [answer("p.0")], judged("p.0", 3.0, 5.0, 1.0))
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("so 1.0", "so 5.0")
    assert (counts["first_wins"], counts["second_wins"]) == (5, 1)
    said = [{"forward": "A", "backward": "A"}] * 3 + [{"forward": "A", "backward": "B"}]
    assert position_weights(said) == (1 / 8, 7 / 8)
    assert position_weights([{"forward": "tie", "backward": None}]) == (0.5, 0.5)


def test_unread_verdicts_are_counted_and_decide_nothing():
    pairs, counts = run(lambda a, b: "hm", [answer("p.0")], judged("p.0", 3.0, 5.0))
    assert (pairs, counts["unread"]) == ([], 2)


def test_the_most_disputed_finished_answer_of_each_prompt():
    responses = [answer("p.0"), answer("p.1"), answer("p.2", finished=False), answer("q.0")]
    judgements = [
        *judged("p.0", 3.0, 4.0),
        *judged("p.1", 1.0, None, 5.0),
        *judged("p.2", 0.0, 5.0),
        *judged("q.0", 4.0, 4.0),
    ]
    ((found, theirs),) = most_disputed({"p": "", "q": ""}, responses, judgements)
    assert (found["id"], [row["score"] for row in theirs]) == ("p.1", [1.0, 5.0])
    pairs, counts = run(lower, responses, judgements, most=1)
    assert counts["prompts"] == 1 and [row["id"] for row in pairs] == ["p.1.judge"]


def test_most_disputed_against_brute_force():
    draw = random.Random(0)
    for _ in range(200):
        responses = [answer(f"p.{k}", finished=draw.random() < 0.8) for k in range(4)]
        scores = {
            row["id"]: [draw.choice([None, 1.0, 3.0, 5.0]) for _ in range(3)] for row in responses
        }
        judgements = [row for owner, s in scores.items() for row in judged(owner, *s)]
        draw.shuffle(judgements)
        known = {
            row["id"]: pvariance(s)
            for row in responses
            if row["finished"] and len(s := [x for x in scores[row["id"]] if x is not None]) > 1
        }
        widest = max(known.values(), default=0)
        found = most_disputed({"p": ""}, responses, judgements)
        assert len(found) == (widest > 0)
        if found:
            assert found[0][0]["id"] == next(name for name, v in known.items() if v == widest)


def test_elo_of_two_is_the_log_odds():
    first, second = elo(2, {(0, 1): 3.0, (1, 0): 1.0})
    assert first - second == pytest.approx(math.log((3 + PRIOR) / (1 + PRIOR)))
    assert first + second == pytest.approx(0)
    assert elo(1, {}) == [0.0] and elo(3, {}) == pytest.approx([0, 0, 0])


def test_elo_expects_as_many_wins_as_there_were():
    """The maximum's condition: for each player Σ games · P(win) = wins."""
    draw = random.Random(1)
    for _ in range(20):
        n = draw.randint(2, 6)
        wins = {(i, j): draw.choice([0, 0.3, 1, 2]) for i, j in permutations(range(n), 2)}
        score, won = elo(n, wins), {pair: w + PRIOR for pair, w in wins.items()}
        for i in range(n):
            rivals = [j for j in range(n) if j != i]
            expected = sum(
                (won[i, j] + won[j, i]) / (1 + math.exp(score[j] - score[i])) for j in rivals
            )
            assert expected == pytest.approx(sum(won[i, j] for j in rivals), abs=1e-6)
        assert sum(score) == pytest.approx(0)
        turned = elo(n, {(n - 1 - i, n - 1 - j): w for (i, j), w in wins.items()})
        assert turned[::-1] == pytest.approx(score, abs=1e-6)


def test_people_teach_the_meta_judge():
    texts = [{"text": "good", "rank": 0}, {"text": "bad", "rank": 1}]
    ranked = [{"id": "r", "prompt": "Sing.", "responses": texts}]
    first, second = (item["id"] for item in ranked_items(ranked))
    judgements = [*judged(first, 2.0, 4.0), *judged(second, 3.0, 3.0)]  # round 1 agrees
    shown = RUBRIC.render("Sing.", "good")
    assert meta_examples(RUBRIC, TEMPLATE, ranked, judgements) == [
        (f"{shown}\nA: so 4.0\nB: so 2.0\nWhich is right?", "Better: A"),
        (f"{shown}\nA: so 2.0\nB: so 4.0\nWhich is right?", "Better: B"),
    ]
    assert (
        meta_examples(RUBRIC, TEMPLATE, ranked, [*judged(first, 4.0), *judged(second, 3.0)]) == []
    )
    plain = meta_examples(RUBRIC, TEMPLATE, ranked, judgements)
    for n, row in enumerate(judgements):  # expected scores: what was said counts, for it is learnt
        row |= {"said": row["score"], "score": 3.0 + 0.1 * (n % 3)}
    assert meta_examples(RUBRIC, TEMPLATE, ranked, judgements) == plain


def test_a_template_of_the_users_own(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("{prompt} {first}")
    with pytest.raises(ValueError, match="lacks {second}"):
        load_comparison(str(mine))
    with pytest.raises(ValueError, match=r"nowhere.txt: cannot be read"):
        load_comparison("nowhere.txt")
    for name in ("pairwise", "meta"):
        assert "Better: neither" in load_comparison(name)
