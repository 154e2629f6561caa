"""Rules over evaluations: each fires on what it is for, and on nothing else; when a run ends."""

import ast
from pathlib import Path

import pytest

import loop.health
from judge import answer_pairs
from loop.health import RULES, Finding, ending, findings


def healthy():
    return {
        "instruction_following": {"win_rate_vs_previous": 0.6, "lc_win_rate_vs_previous": 0.58},
        "judging": {"pairwise_accuracy_ci": [0.7, 0.8], "gain_vs_previous_ci": [-0.01, 0.03]},
        "answers": {"mean_words": 50.0, "distinct_2": 0.6, "cut_off": 0.01},
        "scores": {"commonest_score": 0.4, "unparsed": 0.02},
        "own_scores": {"full_score": 0.5},
        "progress": {
            "judged_win_rate": 0.6, "lc_judged_win_rate": 0.58, "judged_win_rate_ci": [0.55, 0.65],
        },
        "counts": {"pairs.jsonl": {"prompts": 100, "too_few": 10, "equal_scores": 30, "pairs": 60}},
    }  # fmt: skip


SICK = {
    "saturation": ("own_scores", {"full_score": 0.96}),
    "collapse to one score": ("scores", {"commonest_score": 0.93, "unparsed": 0.0}),
    "judge drift": ("judging", {"pairwise_accuracy_ci": [0.6, 0.68]}),
    "too few pairs": (
        "counts",
        {"pairs.jsonl": {"prompts": 100, "too_few": 20, "equal_scores": 71, "pairs": 9}},
    ),
    "length drift": ("answers", {"mean_words": 101.0, "distinct_2": 0.6}),
    "wins by length": ("progress", {"judged_win_rate": 0.8, "lc_judged_win_rate": 0.6}),
    "degenerate diversity": ("answers", {"mean_words": 50.0, "distinct_2": 0.29}),
    "unread judgements": ("scores", {"commonest_score": 0.4, "unparsed": 0.25}),
    "answers cut off": ("answers", {"cut_off": 0.3}),
}


def test_every_rule_has_a_case():
    assert set(SICK) == {rule.name for rule in RULES}
    assert findings({}) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_fires_on_what_it_is_for_and_no_other_does(rule):
    part, sick = SICK[rule.name]
    models = {"M1": healthy(), "M2": healthy(), "M3": healthy() | {part: sick}}
    assert findings({"M1": models["M1"], "M2": models["M2"]}) == []
    (found,) = findings(models)
    assert (found.model, found.rule, found.stops) == ("M3", rule.name, rule.stops)
    assert found.value >= rule.threshold and rule.meaning in found.line
    assert bool(ending(models, [found])) == rule.stops


def test_just_below_a_threshold_nothing_is_found():
    near = healthy()
    near["own_scores"] = {"full_score": 0.949}
    near["answers"] = {"mean_words": 99.9, "distinct_2": 0.301, "cut_off": 0.199}
    near["judging"]["pairwise_accuracy_ci"] = [0.6, 0.695]  # the intervals all but touch
    assert findings({"M1": healthy(), "M2": near}) == []


def test_prompts_without_a_pair_are_told_though_others_have_several():
    """Nine prompts of ten give every answer the same score, the tenth makes three pairs."""
    prompts = [{"id": f"p{i}", "prompt": "?"} for i in range(10)]
    answers = [
        {"id": f"p{i}.{k}", "prompt_id": f"p{i}", "k": k, "text": f"{k}", "finished": True}
        for i in range(10)
        for k in range(6)
    ]
    scores = [
        {"id": row["id"], "response_id": row["id"], "k": 0, "score": row["k"] if i < 6 else 3}
        for i, row in enumerate(answers)
    ]
    pairs, counts = answer_pairs(prompts, answers, scores, per_prompt=3)
    assert len(pairs) == counts["pairs"] == 3
    (found,) = findings({"M1": healthy(), "M2": healthy() | {"counts": {"pairs.jsonl": counts}}})
    assert (found.rule, found.value) == ("too few pairs", 0.9)


@pytest.mark.parametrize("part", list(healthy()))
def test_what_is_not_known_breaks_no_rule(part):
    """M1 has no predecessor, the last model taught nobody, an old run has no signs."""
    for unknown in ({}, dict.fromkeys(healthy()[part])):
        models = {"M1": healthy() | {part: unknown}, "M2": healthy(), "M3": healthy()}
        assert findings(models) == []
        assert findings({"M1": healthy(), "M2": healthy() | {part: unknown}}) == []
    assert findings({"M1": {}, "M2": {}}) == [] and ending({"M1": {}, "M2": {}}, []) is None


def test_what_the_truth_says_of_length_is_no_rule():
    """Beside a truth the win rate is the truth's; where a judge made it, its counts stand there."""
    gap = {"win_rate_vs_previous": 0.9, "lc_win_rate_vs_previous": 0.5}
    model = healthy() | {"progress": {}, "instruction_following": gap}
    assert findings({"M1": healthy(), "M2": model}) == []
    model["instruction_following"] = gap | {"head_to_head": {"win": 9}}
    assert [row.rule for row in findings({"M1": healthy(), "M2": model})] == ["wins by length"]


def at(wins, gain):
    """A model whose intervals begin there."""
    model = healthy()
    model["progress"]["judged_win_rate_ci"] = [wins, 0.9]
    model["judging"]["gain_vs_previous_ci"] = [gain, 0.9]
    return {"M1": healthy(), "M2": model}


@pytest.mark.parametrize(
    ("wins", "gain", "ends"),
    [
        (0.51, -0.1, False),
        (0.4, 0.01, False),
        (0.51, 0.01, False),
        (0.5, 0.0, True),
        (0.4, -0.1, True),
    ],
)
def test_a_plateau_is_where_neither_axis_improved_beyond_its_interval(wins, gain, ends):
    assert bool(ending(at(wins, gain), [])) is ends


def test_a_warning_does_not_end_a_run():
    warning = Finding("M2", "length drift", 3.0, 2.0, False, "long")
    assert ending(at(0.6, 0.1), [warning]) is None


def test_the_truth_ends_no_run():
    """Not a word of it is read: whatever it says, what is found is the same."""
    source = Path(loop.health.__file__).read_text()
    read = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
    assert not [word for word in read if str(word).startswith(("truth", "greedy_perfect"))]
    told = at(0.4, -0.1)
    told["M2"]["instruction_following"] |= {"truth_score": 5.0, "truth_perfect_ci": [0.9, 1.0]}
    assert ending(told, findings(told)) == ending(at(0.4, -0.1), [])
