"""Which checkpoint becomes the next model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dpo_runs import Killed, dpo, files, kill_before
from tiny_llama import tiny_model

from dpo import pair_logps
from judge import load_rubric
from llama import fingerprint
from llama.parallel import start
from loop.choice import Choice, duel, last_winner
from loop.run import Run
from loop.settings import Choice as How
from loop.settings import Judging, Settings

PROMPTS = [{"id": f"v{n}", "prompt": f"say {n}"} for n in range(4)]
PAIRS = [{"id": f"p{n}", "prompt": "x", "chosen": "a", "rejected": "b"} for n in range(10)]


class FakeModels:
    """Checkpoints step-2, step-10 and the last, of which `worth` says what the judge thinks."""

    def __init__(self, run, worth):
        self.run, self.worth, self.trained, self.asked = run, worth, [], []

    def dpo(self, name, start, pairs, replay, how, keep_every=None):
        def make(out: Path):
            self.trained.append((name, [row["id"] for row in pairs], keep_every))
            for which in ("step-2", "step-10") if keep_every else ():
                (out / which).mkdir()
                (out / which / "model").write_text(which)
            (out / "model").write_text("last")
            return {"steps": 12}

        return self.run.directory(name, make, name)

    def complete(self, path):
        which = path.name if path.name.startswith("step-") else "last"

        def write(prompts, **how):
            self.asked.append((path.name, how["description"]))
            if how["description"] == "answering":
                texts = [which for _ in prompts]
            else:
                answers = [prompt.rsplit("Answer: ", 1)[1] for prompt in prompts]
                texts = [f"Score: {self.worth[answer]}" for answer in answers]
            reply = [SimpleNamespace(text=t, finished=True, token_ids=[0]) for t in texts]
            return [[one] * how["n"] for one in reply]

        return write

    def pair_logps(self, path, pairs):
        worth = self.worth["M1" if path.name == "M1" else self.which(path)]
        chosen = [1.0 if n < worth else -1.0 for n in range(len(pairs))]
        return torch.tensor(chosen), torch.zeros(len(pairs))

    @staticmethod
    def which(path):
        return path.name if path.name.startswith("step-") else "last"


def choose(tmp_path, alone, how, worth, validation=PROMPTS):
    settings = Settings(choice=how, judging=Judging(rubric="additive_short", k=2))
    with Run.open(tmp_path / "run", settings.identity(), alone) as run:
        models = FakeModels(run, worth)
        choice = Choice(run, settings, models, validation, load_rubric("additive_short"))
        path = choice.dpo("M2", run.root / "M1", PAIRS, [])
        assert not list(path.glob("step-*"))  # a checkpoint, without the candidates
        return (path / "model").read_text(), models


@pytest.mark.parametrize(
    ("worth", "chosen"),
    [
        ({"step-2": 1, "step-10": 2, "last": 3}, "last"),
        ({"step-2": 1, "step-10": 3, "last": 3}, "step-10"),
        ({"step-2": 2, "step-10": 1, "last": 5}, "step-2"),  # stops where it no longer wins
    ],
)
def test_by_judge_the_last_that_still_wins(tmp_path, alone, worth, chosen):
    found, models = choose(tmp_path, alone, How(by="judge", every=2), worth)
    assert found == chosen
    judged = [name for name, what in models.asked if what == "judging"]
    assert judged == ["M1"] * 3  # M_t is the judge
    again, models = choose(tmp_path, alone, How(by="judge", every=2), worth)
    assert (again, models.asked, models.trained) == (chosen, [], [])


def test_another_judge_may_be_named(tmp_path, alone):
    worth = {"step-2": 1, "step-10": 2, "last": 3}
    _, models = choose(tmp_path, alone, How(by="judge", judge="there/expert"), worth)
    assert {name for name, what in models.asked if what == "judging"} == {"expert"}


def test_by_accuracy_on_pairs_that_were_not_learnt(tmp_path, alone):
    worth = {"M1": 0, "step-2": 1, "step-10": 3, "last": 2}
    how = How(by="accuracy", every=2, hold_back=3)
    found, models = choose(tmp_path, alone, how, worth)
    assert found == "step-10"
    assert models.trained == [("M2.steps", ["p1", "p2", "p4", "p5", "p7", "p8"], 2)]


def test_by_default_the_last_and_no_candidates(tmp_path, alone):
    found, models = choose(tmp_path, alone, How(), {})
    assert found == "last"
    assert models.trained == [("M2", [row["id"] for row in PAIRS], None)]
    assert not (tmp_path / "run" / "M2.steps").exists()


def test_nothing_to_choose_by_is_told_at_once(tmp_path, alone):
    with pytest.raises(ValueError, match=r"no validation.jsonl .* choice.by=last"):
        choose(tmp_path, alone, How(by="judge"), {}, validation=[])


def test_what_has_no_score_takes_no_side():
    ours = {"a": 3.0, "b": 2.0, "c": None, "d": 1.0, "e": 4.0}
    theirs = {"a": 2.0, "b": 2.0, "c": 1.0, "d": None, "e": 5.0}
    assert duel(ours, theirs) == {"win": 1, "tie": 1, "loss": 1, "unread": 2}
    assert duel({"a": 0.1 + 0.2}, {"a": 0.3})["tie"] == 1  # in the last bit only they differ
    drawn = [{"name": "b", "win": 1, "loss": 1}, {"name": "c", "win": 9, "loss": 0}]
    assert last_winner("a", drawn) == "a"


def test_the_steps_on_the_way_are_those_of_the_whole_training(tmp_path, monkeypatch):
    """What is kept after a step is the same after an interruption, and changes nothing."""

    def kept(model, directory):
        seen = {}
        dpo(model, directory, after_step=lambda step, of: seen.update({step: fingerprint(model)}))
        return seen

    plain = tiny_model()
    dpo(plain)
    whole = kept(tiny_model(), tmp_path / "whole")
    assert sorted(whole) == [1, 2, 3, 4, 5] and whole[5] == fingerprint(plain)
    with monkeypatch.context() as patch:
        kill_before(patch, 3)
        with pytest.raises(Killed):
            kept(tiny_model(), tmp_path / "killed")
    again = kept(tiny_model(), tmp_path / "killed")
    assert sorted(again) == [3, 4, 5] and again.items() <= whole.items()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_log_probabilities_of_pairs_are_the_references(tmp_path):
    from dpo_runs import alone as by_itself
    from dpo_runs import pairs

    model, data = tiny_model(), pairs(6)
    chosen, rejected = pair_logps(model, data, micro_tokens=64, group=start())
    for n, pair in enumerate(data):
        for found, row in ((chosen[n], pair.chosen), (rejected[n], pair.rejected)):
            assert found.item() == pytest.approx(by_itself(model, row).item(), abs=1e-4)
