"""Interrupted within a stage that measures, chooses or judges judgements, a run goes on from the
last unit: of what was asked before, at most one unit is asked again.
"""

import os
from itertools import accumulate, groupby
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
import torch
from small_loop import Killed, kept

from judge import bootstrap, load_rubric
from loop.choice import Choice
from loop.evaluate import Evaluation
from loop.meta import MetaRewarding
from loop.models import Models
from loop.run import Run
from loop.settings import Choice as ChoiceSettings
from loop.settings import Evaluation as EvaluationSettings
from loop.settings import Judging, Machine, Meta, Settings
from loop.status import Next, ReadRun
from seed.read import Seed

UNIT, ALL = 2, 1000
RUBRIC = load_rubric("additive_short")
PROMPTS = [{"id": f"h{i}", "prompt": f"ask {i}"} for i in range(5)]
TEXTS = [{"text": "worth 4", "rank": 0}, {"text": "worth 2", "rank": 1}]
RANKED = [{"id": f"r{i}", "prompt": f"rank {i}", "responses": TEXTS} for i in range(2)]
PAIRS = [{"id": f"p{n}", "prompt": "x", "chosen": "a", "rejected": "b"} for n in range(10)]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Nothing here pulls the plug, and no interval is looked at."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(bootstrap, "RESAMPLES", 20)


class Writer:
    """A model that writes one completion after the other, by what it is asked alone, and dies
    before the completion `last`. `asked`: what it has written; `calls`: how many it was asked for.
    """

    def __init__(self, last=None):
        self.last, self.asked, self.calls = last, [], []

    def by(self, path):
        """The same writer under a model's name."""

        def write(prompts, *, ids, n, temperature, description, **how):
            self.calls.append((path.name, description, len(prompts)))
            for prompt, name in zip(prompts, ids, strict=True):
                self.count(path.name, description, temperature, name, prompt)
                yield [reply(description, prompt, f"{path.name} {name} {k}") for k in range(n)]

        return write

    def count(self, *what):
        if len(self.asked) == self.last:
            raise Killed
        self.asked.append(what)


def reply(description, prompt, key):
    """Words, scores and choices that look random."""
    draw = crc32(f"{prompt} {key}".encode())
    text = {
        "judging": f"so {key}\nScore: {draw % 6}",
        "comparing": f"Better: {'AB'[draw % 2]}",
    }.get(description, f"worth {draw % 6}, says {key}")
    return SimpleNamespace(text=text, token_ids=[draw % 7, 1], finished=True)


class WritingModels(Models):
    """Models of which one writer speaks, and log-probabilities are of what they are asked."""

    def __init__(self, run, settings, writer):
        self.run, self.settings, self.writer = run, settings, writer

    def complete(self, path):
        return self.writer.by(path)

    def drift(self, path, before, said):
        return [
            {"id": row["id"], "logp": -1.0 * sum(row["token_ids"]), "logp_before": -5.0}
            for row in said
        ]

    def dpo(self, name, start, pairs, replay, how, keep_every=None):
        def make(out: Path):
            for which in ("step-2", "step-10"):
                (out / which).mkdir()
                (out / which / "model").write_text(which)
            (out / "model").write_text("last")
            return {"steps": 12}

        return self.run.directory(name, make, name)

    def pair_logps(self, path, pairs):
        self.writer.count(path.name, "pairs")
        chosen = [crc32(f"{path.name} {pair['id']}".encode()) / 2**32 for pair in pairs]
        return torch.tensor(chosen), torch.zeros(len(pairs))


def measured(run, settings, models):
    """M1 and M2, measured in every way there is."""
    seed = Seed(ift=[], eft=[], ranked=RANKED, held_out=PROMPTS, eft_ranked=[])
    evaluation = Evaluation(run, settings, models, seed, RUBRIC)
    for name, before in (("M1", None), ("M2", "M1")):
        evaluation.measure(name, before, models.complete(Path(name)), None)


def chosen(run, settings, models):
    """M2, out of three candidates."""
    Choice(run, settings, models, PROMPTS, RUBRIC).dpo("M2", Path("M1"), PAIRS, [])


def judged_judgements(run, settings, models):
    """Of five prompts with three judgements of one answer."""
    answers = [
        {"id": f"{row['id']}.0", "prompt_id": row["id"], "text": "la", "finished": True}
        for row in PROMPTS
    ]
    judgements = [
        {"id": f"{row['id']}.{k}", "response_id": row["id"], "k": k, "text": f"so {k}", "score": k}
        for row in answers
        for k in range(3)
    ]
    meta = MetaRewarding(run, settings, models, RUBRIC)
    assert meta.pairs(1, "M1", PROMPTS, answers, judgements)
    counts = run.counts("M1/judgement_pairs.jsonl")
    assert counts["comparisons"] == 30 and counts["pairs"] + counts["undecided"] == 5


WORKS = {
    "evaluation": (measured, {}),
    "choice by judge": (chosen, {"choice": ChoiceSettings(by="judge", every=2)}),
    "Meta-Rewarding": (
        judged_judgements,
        {"meta": Meta(prompts=5, template="meta_short", max_new_tokens=9)},
    ),
}
BY_ACCURACY = chosen, {"choice": ChoiceSettings(by="accuracy", every=2, hold_back=3)}


def settings_of(work, unit):
    return Settings(
        until_plateau=True,
        evaluation=EvaluationSettings(samples=2, drift=3),
        judging=Judging(rubric="additive_short", k=2),
        machine=Machine(unit=unit),
        **work[1],
    )


def done(directory, group, work, writer, unit=UNIT):
    """The work, in a run of its own or one that is there; what is left of it."""
    settings = settings_of(work, unit)
    with Run.open(directory, settings.identity(), group) as run:
        work[0](run, settings, WritingModels(run, settings, writer))
    return kept(directory)


def places(asked):
    """The fourth completion of every kind, of each model, and the last one of all."""
    kinds = [len([*same]) for _, same in groupby(asked, key=lambda what: what[:3])]
    return sorted({min(start + 3, len(asked) - 1) for start in accumulate(kinds, initial=0)})


def asked_again(tmp_path, group, work, kills, unit):
    """Killed before each of these completions and started again: how many were written twice."""
    whole = Writer()
    clean, twice = done(tmp_path / "clean", group, work, whole, unit), []
    for n in kills:
        first, again = Writer(last=n), Writer()
        with pytest.raises(Killed):
            done(tmp_path / str(n), group, work, first, unit)
        assert done(tmp_path / str(n), group, work, again, unit) == clean
        assert {*first.asked, *again.asked} == {*whole.asked}
        twice.append(len({*first.asked} & {*again.asked}))
    return twice


@pytest.mark.parametrize("kind", WORKS)
def test_killed_within_a_stage_only_its_last_unit_is_made_again(tmp_path, alone, kind):
    work, whole = WORKS[kind], Writer()
    done(tmp_path / "count", alone, work, whole)
    assert len({*whole.asked}) == len(whole.asked) > 25
    twice = asked_again(tmp_path, alone, work, places(whole.asked), UNIT)
    assert 0 < max(twice) < 2 * UNIT  # a comparison is two completions


@pytest.mark.parametrize("kind", WORKS)
def test_in_one_unit_a_whole_stage_is_made_again(tmp_path, alone, kind):
    """Negative control: what is counted above is what units save."""
    work, whole = WORKS[kind], Writer()
    done(tmp_path / "count", alone, work, whole, ALL)
    kills = [4, len(whole.asked) // 2, len(whole.asked) - 1]
    assert max(asked_again(tmp_path, alone, work, kills, ALL)) >= 2 * UNIT


@pytest.mark.parametrize("kind", WORKS)
def test_units_change_no_file_and_no_call_of_the_model(tmp_path, alone, kind):
    """A stage's units are asked for at once, so that slots do not stand empty."""
    in_units, in_one = Writer(), Writer()
    left = done(tmp_path / "units", alone, WORKS[kind], in_units)
    assert left == done(tmp_path / "one", alone, WORKS[kind], in_one, ALL)
    assert in_units.calls == in_one.calls and sorted(in_units.asked) == sorted(in_one.asked)


def test_sampled_and_greedy_answers_may_share_a_unit(tmp_path, alone):
    """The units of five prompts twice: s s, s s, s g, g g, g g."""
    with pytest.raises(Killed):
        done(tmp_path, alone, WORKS["evaluation"], Writer(last=6))
    units = kept(tmp_path)
    assert [name for name in units if ".units" in name] == [
        f"M1/eval_answers.jsonl.units/{part}.jsonl" for part in ("0-2", "2-4", "4-6")
    ]
    shared = units["M1/eval_answers.jsonl.units/4-6.jsonl"].decode().splitlines()
    assert [line.count('"sampled"') for line in shared] == [1, 1, 0]
    settings = settings_of(WORKS["evaluation"], UNIT)
    run = ReadRun(tmp_path)
    with pytest.raises(Next, match=r"M1: held-out instructions, part 4 of 5"):
        measured(run, settings, WritingModels(run, settings, Writer(last=0)))


def test_by_accuracy_each_candidate_is_asked_once(tmp_path, alone):
    """M_t, which is the reference, and three candidates."""
    assert asked_again(tmp_path, alone, BY_ACCURACY, range(1, 4), UNIT) == [0, 0, 0]
