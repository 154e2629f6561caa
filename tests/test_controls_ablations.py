"""An ablation is the loop with one choice made otherwise, and shares the rest of M1's work."""

from dataclasses import fields, replace
from unittest.mock import Mock

import pytest

from controls.__main__ import ABLATION_SEEDS, _chosen, _rendered, main
from controls.ablations import ABLATIONS, MultipleChoice, NoEft, ReferenceM1
from controls.arms import ARMS
from controls.results import render_ablations, render_results
from controls.shared import Shared
from loop.options import parse_arguments
from loop.run import Run
from seed.start import open_start

SETTINGS = parse_arguments(["--preset", "smoke"])
BY_LABEL = {each.label: each for each in ABLATIONS}


class Recorder:
    """Stands for the models: remembers every training."""

    def __init__(self):
        self.trained = []

    def dpo(self, name, start, pairs, replay, how, keep_every=None, reference=None):
        self.trained.append((name, start, reference))
        return start


@pytest.fixture
def begun(tmp_path, alone):
    """Every ablation, begun in one run."""
    given = open_start(None, None)
    with Run.open(tmp_path / "run", SETTINGS.identity(), alone) as run:
        yield {label: each.begin(run, SETTINGS, given, alone) for label, each in BY_LABEL.items()}


def test_labels_are_their_own():
    labels = [arm.label for arm in ARMS] + list(BY_LABEL)
    assert len(set(labels)) == len(labels)
    assert list(_chosen(["K=1"])) == ["loop", "K=1"]
    assert list(_chosen([])) == labels


def test_an_unknown_label_is_told(capsys):
    assert main(["--only", "K=9"]) == 2
    assert "--only K=9: expected one of loop, random pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--seeds", "0"], ["--seeds", "11"], ["--set", "seed=7"], ["--set", "run='x'"]]
)
def test_seeds_that_make_no_interval_are_refused(monkeypatch, capsys, flags):
    monkeypatch.setattr("controls.__main__.start", lambda: pytest.fail("it began"))
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert " ".join(flags[:1]) in capsys.readouterr().err.splitlines()[-1]


def test_settings_that_do_not_fit_the_seed_are_refused_before_anything_is_made(tmp_path, capsys):
    flags = ["--preset", "smoke", "--out", str(tmp_path), "--set", "prompts.n_seed=1000"]
    assert main(flags) == 2
    assert "ift.jsonl: prompts.n_seed=1000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_between_the_runs_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr("controls.__main__.start", Mock(side_effect=KeyboardInterrupt))
    assert main([]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "stopped; what is finished is kept: the same command goes on"


@pytest.mark.parametrize("label", BY_LABEL)
def test_only_the_named_settings_differ_and_the_evaluation_is_the_loops(begun, label):
    arm, change = begun[label], BY_LABEL[label].change
    for part in fields(SETTINGS):
        ours, theirs = getattr(arm.settings, part.name), getattr(SETTINGS, part.name)
        assert ours == (replace(theirs, **change[part.name]) if part.name in change else theirs)
    assert not change or arm.settings != SETTINGS
    assert arm.evaluation.settings == SETTINGS


@pytest.mark.parametrize("label", BY_LABEL)
def test_what_a_change_touches_is_made_anew_and_the_rest_is_shared(begun, label):
    """What depends on a changed setting must not be taken from the loop; the order of making is
    prompts, responses, judgements, pairs."""
    touches = {"prompts": 0, "responses": 1, "judging": 2, "pairs": 3}
    chain = ["prompts.jsonl", "responses.jsonl", "judgements.jsonl", "pairs.jsonl"]
    ablation, arm = BY_LABEL[label], begun[label]
    practises_otherwise = {"expected"} & ablation.change.get("judging", {}).keys()
    only_practice = ablation.change.get("judging", {}).keys() == {"practice"}
    touched = [touches[part] for part in ablation.change if part in touches and not only_practice]
    expected = set(chain[min(touched) :]) if touched else set()
    if practises_otherwise:
        expected |= {"practice_judgements.jsonl", "practice.jsonl"}
    if "meta" in ablation.change:
        expected |= {"judgement_pairs.jsonl"}
    own_m1 = ablation.kind in (MultipleChoice, NoEft)
    place = label.replace(" ", "-")
    assert arm.name(1) == (f"{place}/M1" if own_m1 else "M1")
    assert arm.name(2) == f"{place}/M2"
    assert set(ablation.own) == expected
    for stage in (*chain, "practice.jsonl", "eval.json"):
        found = arm.run.place(f"{arm.name(1)}/{stage}")
        mine = own_m1 or stage in expected
        assert found == (f"{place}/M1/{stage}" if mine else f"M1/{stage}")
    own_scores = arm.run.place(f"{arm.name(1)}/own_scores.json")
    assert own_scores.startswith(place) == (own_m1 or "judgements.jsonl" in expected)
    assert arm.run.place("M1") == "M1"


def test_a_branch_keeps_its_stages_beside_the_runs(tmp_path, alone):
    with Run.open(tmp_path, {}, alone) as run:
        run.rows("M1/prompts.jsonl", lambda: [{"id": "p"}], "prompts")
        run.rows("M1/pairs.jsonl", lambda: ([{"id": "loop"}], {"pairs": 1}), "pairs")
        branch = Shared(run, "arm", ("pairs.jsonl", "answers.jsonl"))
        assert branch.rows("M1/prompts.jsonl", lambda: 1 / 0, "prompts") == [{"id": "p"}]
        assert not branch.has("M1/pairs.jsonl")
        made = branch.rows("M1/pairs.jsonl", lambda: ([{"id": "arm"}], {"pairs": 2}), "pairs")
        units = branch.rows_in_units(
            "M1/answers.jsonl",
            [1, 2, 3],
            lambda parts: ([{"n": len(p)}] for p in parts),
            "a",
            unit=2,
        )
        assert (made, units) == ([{"id": "arm"}], [{"n": 2}, {"n": 1}])
        assert branch.counts("M1/pairs.jsonl") == {"pairs": 2}
        assert run.counts("M1/pairs.jsonl") == {"pairs": 1}
        assert (tmp_path / "arm" / "M1" / "answers.jsonl").is_file()


def test_without_eft_nobody_shows_a_judgement(begun):
    arm, loop = begun["no EFT"], begun["K=1"]
    assert len(arm.seed_examples(1)) == len(arm.given.seed.ift) < len(loop.seed_examples(1))
    assert arm.practise(1) == []


def test_a_multiple_choice_names_a_kind_at_once(begun):
    arm = begun["multiple choice"]
    rows = [{"prompt": "p", "response": "r", "judgement": "one two. Score: 0", "score": 0}]
    ((asked, reply, *_),) = arm.judged(rows)
    assert reply == "Score: 1" and asked.startswith("Choose: 1 wrong") and "Task: p" in asked
    assert arm.evaluation.rubric.scores == [1, 2, 3, 4, 5]


def test_reference_m1_stays_the_reference(begun):
    arm = begun["reference M1"]
    assert isinstance(arm, ReferenceM1)
    arm.models = Recorder()
    for t in (1, 2):
        arm.choice.dpo(arm.name(t + 1), arm.model(t), [{"id": "p"}], [])
    m1, m2 = arm.model(1), arm.model(2)
    assert [row[1:] for row in arm.models.trained] == [(m1, m1), (m2, m1)]


def test_a_frozen_judge_is_m1_in_every_iteration(begun):
    arm, asked = begun["frozen judge"], []
    arm.ask_judge = lambda t, items, k: asked.append(t) or [{"id": "j"}]
    answers = [{"id": "p.0", "prompt_id": "p", "text": "x"}]
    for t in (1, 2):
        arm.judge(t, [{"id": "p", "prompt": "q"}], answers)
    assert asked == [1, 1]


def evaluation(value, pairs):
    following = {"truth_perfect": value, "greedy_perfect": value, "mean_tokens": 10 * value}
    judging = {"pairwise_accuracy": value, "kendall": value}
    return {"instruction_following": following, "judging": judging, "pairs": pairs}


def test_what_no_judge_could_say_is_shown_as_unknown():
    silent = whole(0.5) | {"judging": dict.fromkeys(whole(0.5)["judging"])}
    loop = [whole(0.1), whole(0.2), whole(0.5)]
    runs = [{"loop": loop, "K=1": [*loop[:2], silent]}, {"loop": loop, "K=1": loop}]
    assert "| – | – | 8 → 8 | 5.0 |" in render_ablations(runs)
    spearman = render_results(runs).split("Spearman")[1]
    assert "| – | +0.100 [+0.100, +0.100] | – | – | –, +0.400 | – |" in spearman


def test_the_table_takes_differences_within_a_seed():
    runs = [
        {
            "loop": [evaluation(0.1, 8), evaluation(0.2, 9), evaluation(0.5 + shift, None)],
            "K=1": [evaluation(0.1, 4), evaluation(0.2, 6), evaluation(0.4 + shift, None)],
        }
        for shift in (0.0, 0.2)
    ]
    loop, ablated = render_ablations(runs).splitlines()[-2:]
    assert loop.startswith("| loop | 0.600 [") and "| 8 → 9 | 6.0 |" in loop
    assert ablated.count("-0.100 [-0.100, -0.100]") == 4 and "| 4 → 6 | 5.0 |" in ablated


def test_later_seeds_have_no_ablations_and_the_tables_say_what_they_hold():
    loop = [whole(0.1), whole(0.2), whole(0.5)]
    runs = [{"loop": loop, "K=1": loop, "random pairs": loop} for _ in range(ABLATION_SEEDS)]
    runs.append({"loop": loop, "random pairs": loop})
    text = _rendered(runs, _chosen(["K=1", "random pairs"]))
    controls, ablations = text.split("# Ablations")
    assert "4 seeds" in controls and "| random pairs |" in controls and "K=1" not in controls
    assert "first 3 of" in ablations and "| K=1 |" in ablations and "random" not in ablations
    assert "# Ablations" not in _rendered(runs, _chosen(["random pairs"]))


def whole(value):
    metrics = ("five_best", "exact_match", "spearman")
    row = evaluation(value, 8)
    row["instruction_following"]["truth_score"] = value
    row["judging"] |= dict.fromkeys(metrics, value)
    return row
