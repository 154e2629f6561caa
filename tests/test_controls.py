"""Each control differs from the loop in one step, and RESULTS.md says what was measured."""

from types import SimpleNamespace

import pytest

from controls.arms import (
    ARMS,
    Arm,
    MoreSft,
    OraclePairs,
    PracticeOnly,
    RandomChoices,
    RandomPairs,
    ReplayOnly,
)
from controls.results import T_975, interval, render_results
from dpo import TrainSettings

PROMPTS = [{"id": f"p{n}", "prompt": f"prompt {n}"} for n in range(40)]
RESPONSES = [
    {"id": f"p{n}.{k}", "prompt_id": f"p{n}", "k": k, "text": text, "finished": text != "cut"}
    for n in range(40)
    for k, text in enumerate(("poor", "fair", "cut", "good", "good"))
]
WORTH = {"poor": 1, "fair": 2, "good": 3, "cut": 9}


class FakeRun:
    """Makes every stage at once, and keeps its counts."""

    def __init__(self, seconds=None):
        self.made, self._seconds = {}, seconds or {}

    def rows(self, path, make, description):
        made = make()
        rows, self.made[path] = made if isinstance(made, tuple) else (made, {})
        return rows

    def rows_in_units(self, path, items, make, description, unit, finish):
        [made] = make([items])
        return self.rows(path, lambda: finish(made), description)

    def stages(self, directory):
        inside = f"{directory}/"
        return [path.removeprefix(inside) for path in self._seconds if path.startswith(inside)]

    def seconds(self, path):
        return self._seconds[path]

    def counts(self, path):
        return {"steps": 10}


class FakeModels:
    """Remembers what was asked of it."""

    def __init__(self):
        self.asked = []

    def sft(self, name, start, examples, how):
        self.asked.append((name, examples, how))


def texts(examples):
    return [(one.prompt, one.response) for one in examples]


def arm_of(kind, run=None, seed=0):
    arm = object.__new__(kind)
    arm.run, arm.models = run or FakeRun(), FakeModels()
    rates = TrainSettings(learning_rate=1e-4)
    parts = {"judging": SimpleNamespace(k=3), "machine": SimpleNamespace(unit=9)}
    arm.settings = SimpleNamespace(seed=seed, sft=rates, dpo=rates, **parts)
    arm.model = lambda t: f"M{t}"
    rows = SimpleNamespace(
        ift=[{"prompt": "i", "response": "a"}],
        eft=[{"prompt": "i", "response": "a", "judgement": "Score: 5"}],
    )
    arm.rubric = SimpleNamespace(render=lambda prompt, response: f"judge {prompt}: {response}")
    truth = lambda prompt, text: {"worth": WORTH[text]}  # noqa: E731
    arm.given = SimpleNamespace(seed=rows, truth=truth)
    return arm


def test_random_pairs_ask_no_judge_and_have_no_favourites():
    arm = arm_of(RandomPairs)
    assert arm.judge(1, PROMPTS, RESPONSES) == []
    pairs = arm.pair(1, PROMPTS, RESPONSES, [])
    assert [row["id"] for row in pairs] == [row["id"] for row in PROMPTS]
    assert {"cut"}.isdisjoint(row[key] for row in pairs for key in ("chosen", "rejected"))
    assert all(row["chosen"] != row["rejected"] for row in pairs)
    better = sum(WORTH[row["chosen"]] > WORTH[row["rejected"]] for row in pairs)
    assert 8 <= better <= 32  # of 40; outside with probability below 1e-4
    assert pairs == arm_of(RandomPairs).pair(1, PROMPTS, RESPONSES, [])
    assert pairs != arm_of(RandomPairs, seed=1).pair(1, PROMPTS, RESPONSES, [])


def test_random_choices_keep_what_contradicts_people_too():
    arm = arm_of(RandomChoices)
    answers = [{"text": "good", "rank": 0}, {"text": "bad", "rank": 1}, {"text": "odd", "rank": 2}]
    arm.given.seed.eft_ranked = [{"id": "a", "prompt": "p", "responses": answers}]

    def ask(t, items, k):
        assert k == 1
        yield [{"text": f"Score: {n}", "score": n} for n in (1.0, 5.0, None)]

    arm.ask_judge = ask
    expected = [("judge p: good", "Score: 1.0"), ("judge p: bad", "Score: 5.0")]
    assert texts(arm.practise(1)) == expected
    assert "random-choices/practice-of-M1.jsonl" in arm.run.made


def test_oracle_pairs_take_the_truth():
    pairs = arm_of(OraclePairs).pair(1, PROMPTS, RESPONSES, [])
    assert len(pairs) == len(PROMPTS)
    assert {(row["chosen"], row["rejected"]) for row in pairs} == {("good", "poor")}


def test_a_prompt_without_two_different_answers_gives_no_pair():
    arm = arm_of(RandomPairs)
    same = [row | {"text": "fair", "finished": True} for row in RESPONSES[:5]]
    assert arm.pair(1, PROMPTS[:1], same, []) == []
    assert arm.run.made["random-pairs/pairs-of-M1.jsonl"]["too_few"] == 1


def test_arms_share_m1_and_nothing_else():
    names = [arm_of(kind).name(2) for kind in ARMS]
    assert len(set(names)) == len(ARMS)
    assert {arm_of(kind).name(1) for kind in ARMS} == {"M1"}
    assert ARMS[0] is Arm and Arm.label == "loop"


def test_more_sft_takes_as_long_as_the_loop():
    seconds = {"M1": 5.0, "M1/prompts.jsonl": 10.0, "M1/eval.json": 99.0, "loop/M2": 20.0}
    arm = arm_of(MoreSft, FakeRun(seconds))
    arm.improve(1)
    name, examples, how = arm.models.asked[0]
    assert (name, how.max_steps) == ("more-SFT/M2", 60)  # 30 s at half a second a step
    assert texts(examples) == [("i", "a"), ("judge i: a", "Score: 5")]


def test_replay_only_sees_the_seed_judgements_alone_and_practice_only_all():
    arm = arm_of(ReplayOnly)
    arm.improve(1)
    name, examples, how = arm.models.asked[0]
    assert (name, how.max_steps) == ("replay-only/M2", 10)
    assert texts(examples) == [("judge i: a", "Score: 5")]
    arm = arm_of(PracticeOnly)
    arm.practise = lambda t: [("practised", "Score: 1")]
    arm.improve(1)
    assert len(arm.models.asked[0][1]) == 3


def evaluation(value):
    axis = dict.fromkeys(("truth_perfect", "greedy_perfect", "truth_score"), value)
    metrics = ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall")
    return {"instruction_following": axis, "judging": dict.fromkeys(metrics, value)}


def test_results_show_every_seed_and_the_paired_differences():
    runs = [
        {
            "loop": [evaluation(v) for v in (0.4, 0.5, 0.7 + shift)],
            "random pairs": [evaluation(v) for v in (0.4, 0.4, 0.3 + shift)],
        }
        for shift in (0.0, 0.1)
    ]
    text = render_results(runs)
    lines = text.splitlines()
    loop, control = [line for line in lines if line.startswith(("| loop", "| random"))][:2]
    assert "+0.300, +0.400" in loop and "-0.100, +0.000" in control
    assert "+0.100 [+0.100, +0.100]" in loop  # M1 → M2, the same in both seeds
    assert control.rstrip(" |").endswith("+0.400 [+0.400, +0.400]")  # ahead by, within a seed
    assert text.count("## ") == 8


def test_the_interval_is_students():
    stats = pytest.importorskip("scipy.stats")
    values = [0.1, 0.4, 0.2, 0.7, 0.3]
    low, high = stats.t.interval(0.95, 4, loc=0.34, scale=stats.sem(values))
    assert interval(values) == f"0.340 [{low:.3f}, {high:.3f}]"
    assert interval([0.5]) == "0.500"
    for freedom, value in T_975.items():
        assert stats.t.ppf(0.975, freedom) == pytest.approx(value, abs=5e-4)
