"""What is measured of each model, by whom, and when a run until-plateau has come to its end."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from judge import load_rubric
from loop.evaluate import Evaluation
from loop.run import Run
from loop.settings import Evaluation as How
from loop.settings import Judging, Settings
from seed.read import Seed

PROMPTS = [{"id": f"h{i}", "prompt": f"ask {i}"} for i in range(6)]
RANKED = [
    {
        "id": f"r{i}",
        "prompt": f"rank {i}",
        "responses": [{"text": "worth 4", "rank": 0}, {"text": "worth 2", "rank": 1}],
    }
    for i in range(6)
]


class Fake:
    """A model that answers `worth W` and gives any answer the score that the answer names, or to
    all of them `blind`. As a judge of two it always likes the first.
    """

    def __init__(self, worth=3, blind=None):
        self.worth, self.blind, self.asked = worth, blind, []

    def __call__(self, prompts, *, ids, n, description, **how):
        self.asked.append(description)
        if description == "answering":
            return [[said(f"worth {self.worth}")] * n for _ in prompts]
        if description == "comparing":
            return [[said("Better: A")] * n for _ in prompts]
        found = [re.findall(r"worth (\d)", prompt) for prompt in prompts]
        scores = [self.blind or (int(words[-1]) if words else 1) for words in found]
        return [[said(f"Score: {score}")] * n for score in scores]


def said(text):
    return SimpleNamespace(text=text, token_ids=text.split(), finished=True)


class Watched:
    """Stands for the models: whose drift from whom was asked for."""

    def __init__(self, root):
        self.root, self.asked = root, []

    def named(self, path):
        return path.relative_to(self.root).as_posix()

    def speak_freely(self, path, parts, longest, seed):
        for part in parts:
            yield [{"id": row["id"], "by": self.named(path)} for row in part]

    def drift(self, path, before, said):
        assert {row["by"] for row in said} == {self.named(path)}
        self.asked.append((self.named(path), self.named(before), len(said)))
        pairs = enumerate(said)
        return [{"id": p["id"], "logp": -2.0, "logp_before": -3.0 - i} for i, p in pairs]


def fairly(run, name):
    judged = [{"id": f"p.0.{k}", "response_id": "p.0", "k": k, "score": 4 + k} for k in (0, 1)]
    run.rows(f"{name}/judgements.jsonl", lambda: judged, "judgements")


def measuring(
    directory, alone, models, until_plateau=False, truth=None, drift=4, judge=None, high=5.0
):
    """Measures `{name: complete}` one after the other; returns evaluations, evaluation, watched."""
    settings = Settings(
        until_plateau=until_plateau,
        evaluation=How(samples=2, drift=drift),
        judging=Judging(rubric="additive_short", k=2),
    )
    seed = Seed(ift=[], eft=[], ranked=RANKED, held_out=PROMPTS, eft_ranked=[])
    watched, found, before = Watched(directory), {}, None
    with Run.open(directory, settings.identity(), alone, may_change=["until_plateau"]) as run:
        rubric = replace(load_rubric("additive_short"), high=high)
        evaluation = Evaluation(run, settings, watched, seed, rubric)
        for name, complete in models.items():
            found[name] = evaluation.measure(name, before, complete, truth)
            before = name
            if evaluation.ended:
                break
            answers = [{"id": "p.0", "prompt_id": "p", "k": 0, "text": "a b"}]
            run.rows(f"{name}/responses.jsonl", lambda rows=answers: rows, "answers")
            (judge or fairly)(run, name)
    return found, evaluation, watched


def truth(prompt, response):
    return {"good": response.endswith("4"), "asked": True}


def test_every_part_of_an_evaluation_is_written(tmp_path, alone):
    found, _, watched = measuring(tmp_path, alone, {"M1": Fake(3), "M2": Fake(4)}, truth=truth)
    first, second = found.values()
    assert list(second) == ["instruction_following", "judging", "answers", "scores"]
    assert second["answers"]["mean_words"] == 2 and second["answers"]["self_overlap"] == 1
    assert second["scores"]["histogram"] == {"2": 12, "4": 12}
    assert second["instruction_following"]["win_rate_vs_previous"] == 1
    assert second["instruction_following"]["lc_win_rate_vs_previous"] == pytest.approx(1)
    assert first["judging"]["pairwise_accuracy"] == 1
    assert second["judging"]["gain_vs_previous"] == 0
    # KL: the mean of (−2) − (−3 − i) over the four prompts asked for
    assert first["answers"]["kl_to_m1"] is None and watched.asked == [("M2", "M1", 4)]
    assert second["answers"]["kl_to_m1"] == pytest.approx(1 + 1.5)
    own = json.loads((tmp_path / "M1/own_scores.json").read_bytes())
    assert own["full_score"] == 0.5 and not (tmp_path / "M2/own_scores.json").exists()


def test_what_is_gone_or_damaged_of_an_evaluation_is_made_again(tmp_path, alone, capsys):
    def measured():
        return measuring(tmp_path, alone, {"M1": Fake(3), "M2": Fake(4), "M3": Fake(5)})[0]

    first = measured()
    files = [file for file in sorted(tmp_path.glob("M*/*")) if file.suffix != ".safetensors"]
    bytes_of = {file: file.read_bytes() for file in files}
    assert tmp_path / "M1/own_scores.json" in files
    for file in files:
        for bad in (None, bytes_of[file][:-3]):
            file.unlink() if bad is None else file.write_bytes(bad)
            assert measured() == first and {f: f.read_bytes() for f in files} == bytes_of, file
            assert f"{file}: " in capsys.readouterr().out


def test_the_best_score_is_that_of_the_rubric(tmp_path, alone):
    found, *_ = measuring(tmp_path / "to 4", alone, {"M1": Fake(3)}, high=4.0)
    judging = found["M1"]["judging"]
    assert (judging["five_best"], judging["five_best_ci"]) == (1, [1, 1])
    assert judging["pairwise_accuracy"] == 1 and judging["canaries"]
    found, *_ = measuring(tmp_path / "to 5", alone, {"M1": Fake(3)})
    assert found["M1"]["judging"] == judging | {"five_best": None, "five_best_ci": None}


def test_an_arm_with_an_m1_of_its_own_is_compared_with_that(tmp_path, alone):
    """And a baseline is nobody's first model."""
    models = {"M1-baseline": Fake(1), "arm/M1": Fake(2), "arm/M2": Fake(2)}
    found, _, watched = measuring(tmp_path, alone, models, until_plateau=True, truth=truth)
    assert watched.asked == [("arm/M2", "arm/M1", 4)]
    assert "gain_vs_previous" in found["arm/M1"]["judging"]  # on the baseline
    assert not (tmp_path / "arm/M1/progress.json").exists()
    assert (tmp_path / "arm/M2/progress.json").exists()


def test_without_truth_the_judge_compares_in_both_orders(tmp_path, alone):
    models = {"M1": Fake(3), "M2": Fake(4)}
    found, *_ = measuring(tmp_path, alone, models, drift=0)
    axis = found["M2"]["instruction_following"]
    assert axis["head_to_head"] == {"win": 0, "tie": 6, "loss": 0, "unread": 0}
    assert axis["win_rate_vs_previous"] == 0.5  # a judge that likes a place prefers nobody
    assert "truth_score" not in axis


def test_what_is_wrong_is_said_once(tmp_path, alone, capsys):
    models = {f"M{t}": Fake(3, blind=4) for t in (1, 2, 3)}
    found, evaluation, _ = measuring(tmp_path, alone, models, truth=truth)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health")]
    collapses = [line for line in lines if "collapse to one score" in line]
    assert [line.split(": ")[1:3] for line in collapses] == [["stop", f"M{t}"] for t in (1, 2, 3)]
    assert not evaluation.ended and len(found) == 3  # so many iterations were asked for


def test_a_run_until_plateau_ends_where_its_judge_sees_no_gain(tmp_path, alone, capsys):
    """M2 answers better than M1 in the judge's eyes, M3 no better than M2."""
    models = {"M1": Fake(2), "M2": Fake(4), "M3": Fake(4), "M4": never}
    found, evaluation, _ = measuring(tmp_path, alone, models, until_plateau=True)
    assert list(found) == ["M1", "M2", "M3"] and evaluation.ended
    rates = [json.loads((tmp_path / f"M{t}/progress.json").read_bytes()) for t in (2, 3)]
    assert [row["judged_win_rate"] for row in rates] == [1.0, 0.5]
    out = capsys.readouterr().out
    assert "until-plateau: neither axis improved" in out and "M3 is the last model" in out
    again = dict.fromkeys(models, never)  # nobody is asked again, and it ends at the same place
    same, evaluation, _ = measuring(tmp_path, alone, again, until_plateau=True)
    assert same == found and evaluation.ended


def test_a_run_until_plateau_ends_at_a_finding_that_stops(tmp_path, alone, capsys):
    models = {"M1": Fake(2), "M2": Fake(4, blind=5), "M3": never}
    found, evaluation, _ = measuring(tmp_path, alone, models, until_plateau=True)
    assert evaluation.ended and list(found) == ["M1", "M2"]
    assert "until-plateau: M2: collapse to one score" in capsys.readouterr().out


def test_a_finished_run_may_go_on_until_its_plateau(tmp_path, alone):
    models = {"M1": Fake(2), "M2": Fake(4), "M3": Fake(4)}
    fixed, evaluation, _ = measuring(tmp_path, alone, models, truth=truth)
    assert not evaluation.ended and not (tmp_path / "M2/progress.json").exists()
    found, evaluation, _ = measuring(tmp_path, alone, models, until_plateau=True, truth=truth)
    assert found == fixed and evaluation.ended  # the evaluations are what they were


def test_the_truth_does_not_decide_when_to_end(tmp_path, alone):
    """The judge finds M2 better, the truth much worse: the run goes on."""
    models = {"M1": Fake(2), "M2": Fake(4)}
    bad = lambda prompt, response: {"good": response.endswith("2")}  # noqa: E731
    found, evaluation, _ = measuring(tmp_path, alone, models, until_plateau=True, truth=bad)
    assert found["M2"]["instruction_following"]["win_rate_vs_previous"] == 0
    assert not evaluation.ended


def test_what_a_model_taught_counts_from_the_next_on(tmp_path, alone):
    """M1's saturation is known at M2, and a run that is taken up again must not know it sooner."""

    def blindly(run, name):
        judged = [{"id": "p.0.0", "response_id": "p.0", "k": 0, "score": 5}]
        run.rows(f"{name}/judgements.jsonl", lambda: judged, "judgements")

    models = {"M1": Fake(2), "M2": Fake(4), "M3": never}
    for _ in range(2):
        found, evaluation, _ = measuring(tmp_path, alone, models, until_plateau=True, judge=blindly)
        assert list(found) == ["M1", "M2"] and evaluation.ended


def never(*args, **how):
    raise AssertionError("asked again")
