"""From Open Assistant's trees to M3: the SFT baseline makes the EFT data, and all counts are true.

tests/data/oasst.trees.jsonl is our own dump of 30 trees; test_seed_oasst.py counts it by hand.
"""

import json
import shlex
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from judge import load_rubric, mean_score, parse_score
from loop.run import Run
from loop.settings import Judging, Settings
from seed.read import Seed, read_seed
from seed.start import Start
from train import SelfRewarding

ROOT = Path(__file__).parent.parent
TREES = ROOT / "tests" / "data" / "oasst.trees.jsonl"
K, N, PROMPTS = 8, 4, 16
FLAGS = (
    f"--set sft.learning_rate=3e-4 --set sft.epochs=4 --set judging.practice=0 "
    f"--set judging.k={K} --set prompts.count={PROMPTS} --set prompts.round_size=64 "
    f"--set dpo.max_steps=1"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One command line: seed data out of the dump, then the loop on the small world's base."""
    place = tmp_path_factory.mktemp("paper")
    python, seed, run = (
        shlex.quote(str(x)) for x in (sys.executable, place / "seed", place / "run")
    )
    command = (
        f"{python} -m seed {shlex.quote(str(TREES))} --out {seed} "
        "--held-out 4 --ranked 8 --ift 8 && "
        f"{python} train.py --preset smoke --run {run} --seed-data {seed} {FLAGS}"
    )
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return place / "seed", place / "run"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def counts_of(run, model):
    return json.loads((run / "report.json").read_text())["models"][model]["counts"]


def test_it_runs_to_m3_and_measures_the_baseline_too(finished):
    _, run = finished
    assert (run / "M3" / "model.safetensors").is_file()
    report = json.loads((run / "report.json").read_text())["models"]
    assert list(report) == ["M1-baseline", "M1", "M2", "M3"]
    for name, model in report.items():
        assert model["judging"]["pairwise_accuracy"] is not None
        compared = "head_to_head" in model["instruction_following"]
        assert compared == (name != "M1-baseline")  # M1 is compared with it
        assert model["instruction_following"]["truth_score"] is None  # nobody knows it


def test_the_eft_rows_are_the_baselines_and_agree_with_people(finished):
    seed, run = finished
    counts, ranked = counts_of(run, "M1-baseline")["eft.jsonl"], rows(seed / "eft_ranked.jsonl")
    left = json.loads((seed / "report.json").read_text())["unused"]
    # by hand: 24 prompts are kept, of which 4 are held out and 8 in ift
    assert len(ranked) == 24 - 4 - 8 - len(rows(seed / "ranked.jsonl")) - left
    assert counts["sets"] == len(ranked)
    made = rows(run / "M1-baseline" / "eft.jsonl")
    assert counts["rows"] == len(made) > 0
    outcomes = ("unranked", "unscored", "disagreeing", "agreeing")
    assert sum(counts[name] for name in outcomes) == counts["sets"]
    rank_of = {(r["prompt"], a["text"]): a["rank"] for r in ranked for a in r["responses"]}
    for row in made:
        assert parse_score(row["judgement"]) == row["score"]
    agreed = {row["prompt"] for row in made}
    assert len(agreed) <= counts["agreeing"]
    for a, b in combinations(made, 2):
        if a["prompt"] == b["prompt"]:
            ranks = rank_of[a["prompt"], a["response"]], rank_of[b["prompt"], b["response"]]
            assert (a["score"] > b["score"]) == (ranks[0] < ranks[1])
    texts = {row["id"]: len(row["responses"]) for row in ranked}
    judged = sum(texts[name] for name in {row["id"].rsplit(".", 2)[0] for row in made})
    assert counts["rows"] + counts["rebalanced_away"] + counts["beyond_most"] >= judged


@pytest.mark.parametrize("model", ["M1", "M2"])
def test_the_counts_of_an_iteration_are_those_of_its_rows(finished, model):
    _, run = finished
    counts, made = counts_of(run, model), run / model
    prompts, responses = rows(made / "prompts.jsonl"), rows(made / "responses.jsonl")
    judgements, pairs = rows(made / "judgements.jsonl"), rows(made / "pairs.jsonl")
    assert counts["prompts.jsonl"]["kept"] == len(prompts) == PROMPTS
    assert len(responses) == PROMPTS * N and len(judgements) == PROMPTS * N * K
    scores: dict[str, list[float | None]] = {}
    for row in judgements:
        assert row["score"] == parse_score(row["text"])
        scores.setdefault(row["response_id"], []).append(row["score"])
    usable: dict[str, list[float]] = {}
    for row in responses:
        score = mean_score(scores[row["id"]])
        if row["finished"] and score is not None:
            usable.setdefault(row["prompt_id"], []).append(score)
    told = counts["pairs.jsonl"]
    assert told["usable"] == sum(map(len, usable.values()))
    assert told["unfinished"] == sum(not row["finished"] for row in responses)
    assert told["too_few"] == PROMPTS - sum(len(each) > 1 for each in usable.values())
    unequal = sum(max(each) - min(each) > 1e-9 for each in usable.values())
    assert told["pairs"] == len(pairs) == unequal - told["identical_texts"] > 0


def test_what_is_measured_on_is_not_learnt_from(finished):
    seed, run = finished
    given = read_seed(seed)
    measured = {row["prompt"] for row in (*given.held_out, *given.ranked)}
    learnt = [
        *given.ift,
        *rows(run / "M1-baseline" / "eft.jsonl"),
        *rows(run / "M1" / "pairs.jsonl"),
    ]
    assert measured.isdisjoint(row["prompt"] for row in learnt)


class Watched:
    """Stands for the models: remembers which is trained from which, on what."""

    def __init__(self):
        self.trained = []

    def complete(self, path):
        return path

    def sft(self, name, start, examples, how):
        self.trained.append((name, str(start), [(one.prompt, one.response) for one in examples]))


def one_run(root, alone, monkeypatch, seed, low=1, **judging):
    """M1 alone, by models that score "good" 5, all else `low`. What was trained, what measured."""

    def judge(complete, rubric, parts, *, k, **how):
        assert (complete.name, k) == ("M1-baseline", 3)
        for items in parts:
            yield [
                {"id": f"{row['id']}.{n}", "response_id": row["id"], "k": n, "score": score,
                 "text": f"Score: {score}"}
                for row in items for n in range(k)
                for score in [(low, 5)[row["response"] == "good"]]
            ]  # fmt: skip

    monkeypatch.setattr("train.judge_in_parts", judge)
    settings = Settings(iterations=1, judging=Judging(rubric="additive_short", **judging))
    models, measured = Watched(), []
    with Run.open(root, settings.identity(), alone) as run:
        loop = SelfRewarding(run, settings, Start(Path("base"), seed, {}, [], None), models)
        loop.evaluation = SimpleNamespace(
            measure=lambda name, before, complete, truth: measured.append((name, before))
        )
        loop.train()
    return models.trained, measured


IFT = [{"id": "i", "prompt": "p", "response": "a"}]
SETS = [
    {
        "id": f"s{n}",
        "prompt": f"q{n}",
        "responses": [{"text": text, "rank": rank} for rank, text in enumerate(texts)],
    }
    for n, texts in enumerate((("good", "bad"), ("bad", "good"), ("good", "poor")))
]


def test_without_judgements_a_baseline_makes_them(tmp_path, alone, monkeypatch):
    seed = Seed(ift=IFT, eft=[], ranked=SETS, held_out=IFT, eft_ranked=SETS)
    trained, measured = one_run(tmp_path / "run", alone, monkeypatch, seed)
    render = load_rubric("additive_short").render
    made = [
        (render(f"q{n}", text), f"Score: {score}")
        for n, texts in ((0, ("good", "bad")), (2, ("good", "poor")))
        for text, score in zip(texts, (5, 1))
    ]
    assert trained == [("M1-baseline", "base", [("p", "a")]), ("M1", "base", [("p", "a"), *made])]
    assert measured == [("M1-baseline", None), ("M1", "M1-baseline")]
    fewer, _ = one_run(tmp_path / "other", alone, monkeypatch, seed, eft_rows=3)
    assert fewer[1][2] == [("p", "a"), *made[:3]]


def test_a_baseline_that_cannot_judge_ends_the_run(tmp_path, alone, monkeypatch):
    seed = Seed(ift=IFT, eft=[], ranked=SETS, held_out=IFT, eft_ranked=SETS)
    with pytest.raises(ValueError, match="M1-baseline agrees with people; give eft.jsonl"):
        one_run(tmp_path, alone, monkeypatch, seed, low=5)


def test_with_judgements_there_is_no_baseline(tmp_path, alone, monkeypatch):
    eft = [{"id": "e", "prompt": "p", "response": "a", "judgement": "Score: 4", "score": 4}]
    seed = Seed(ift=IFT, eft=eft, ranked=SETS, held_out=IFT, eft_ranked=SETS)
    trained, measured = one_run(tmp_path, alone, monkeypatch, seed)
    assert [name for name, *_ in trained] == ["M1"] and measured == [("M1", None)]
    assert trained[0][2][1] == (load_rubric("additive_short").render("p", "a"), "Score: 4")
