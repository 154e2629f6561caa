"""Practising to judge: what a model says of people's rankings is learnt where they agree."""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from judge import load_rubric
from loop.meta import MetaRewarding
from loop.practice import Practice
from loop.settings import Judging, Meta, Settings
from train import SelfRewarding


class OneJudge:
    """Judges "good" 5 and "bad" 1 in the first round for set a, the wrong way round for set b."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, ids, n, **how):
        self.asked += ids
        scores = {"a.0": (5, 1), "a.1": (1, 1), "b.0": (1, 2), "b.1": (5, 2)}
        return [[Said(f"Score: {scores[key][k]}") for k in range(n)] for key in ids]


class Said(NamedTuple):
    text: str
    finished: bool = True


def rows_alone(path, make, title):
    made = make()
    return made[0] if isinstance(made, tuple) else made


def units_alone(path, items, make, description, unit, finish=None):
    [rows] = make([items])
    return finish(rows) if finish else rows


def practising(k, judge, meta=None):
    loop = object.__new__(SelfRewarding)
    answers = [{"text": "good", "rank": 0}, {"text": "bad", "rank": 1}]
    sets = [{"id": name, "prompt": f"prompt {name}", "responses": answers} for name in "ab"]
    loop.run = SimpleNamespace(rows=rows_alone, rows_in_units=units_alone, root=Path("run"))
    loop.models = SimpleNamespace(complete=lambda path: judge)
    loop.settings = Settings(judging=Judging(practice=k))
    loop.rubric = load_rubric("additive_short")
    how = Settings(judging=Judging(practice=k), meta=meta or Meta())
    loop.practice = Practice(loop.run, how, sets)
    loop.meta = MetaRewarding(loop.run, how, loop.models, loop.rubric)
    return loop.practise(1)


def test_practice_keeps_the_judgements_that_agree_with_people():
    judge = OneJudge()
    examples = practising(2, judge)
    render = load_rubric("additive_short").render
    kept = {render("prompt a", "good"): "Score: 5", render("prompt a", "bad"): "Score: 1"}
    assert {one.prompt: one.response for one in examples} == kept and len(examples) == 2
    assert judge.asked == ["a.0", "a.1", "b.0", "b.1"]


def test_the_meta_judge_practises_on_the_same_judgements():
    plain, both = (
        practising(2, OneJudge(), meta)
        for meta in (Meta(), Meta(prompts=1, practice=True, template="meta_short"))
    )
    assert both[: len(plain)] == plain
    # in round 0 both answers of set a are judged as people do, in round 1 only "good" otherwise
    assert [one.response for one in both[len(plain) :]] == ["Better: A", "Better: B"]
    assert "A: Score: 5\nB: Score: 1\n" in both[len(plain)].prompt


def test_without_practice_nobody_is_asked():
    judge = OneJudge()
    assert practising(0, judge) == [] and judge.asked == []


def test_nothing_to_practise_on_is_told_at_once():
    with pytest.raises(ValueError, match=r"no eft_ranked.jsonl .* judging.practice=0"):
        Practice(None, Settings(judging=Judging(practice=1)), [])
    nobody = Practice(None, Settings(judging=Judging(practice=0)), [])
    assert nobody.rows(1, "M1", None, 0) == ([], [])
