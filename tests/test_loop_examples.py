"""What is learnt beside pairs: whole, with its system message, and by whom it was given."""

from types import SimpleNamespace

import pytest
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from dpo import Row, TrainSettings
from llama import encode_example
from llama.parallel import start
from loop.examples import Example
from loop.models import Models
from loop.settings import Settings
from train import SelfRewarding

SETTINGS = Settings(dpo=TrainSettings(learning_rate=1e-3, replay_weight=1.0))
PAIR = {"prompt": "Say fig.", "chosen": "fig", "rejected": "owl"}
BRIEF = "Be brief."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "base"
    llama.save(tiny_model(), tiny_tokenizer(), path)
    return path


class Trained(Models):
    """Takes note of the rows that a training would have; nothing is trained."""

    def __init__(self, place):
        self.lines, self.data = [], None
        run = SimpleNamespace(root=place, say=self.lines.append, directory=self.note)
        super().__init__(run, SETTINGS, start())

    def note(self, name, make, description):
        self.counts = make(None)

    def _train(self, train, model, tokenizer, data, *rest):
        self.data, self.replay = data, getattr(train, "keywords", {}).get("replay")
        return {}


def examples_of(ift, eft=()):
    loop = object.__new__(SelfRewarding)
    loop.given = SimpleNamespace(seed=SimpleNamespace(ift=ift, eft=list(eft)))
    loop.rubric = SimpleNamespace(render="{} {}".format)
    return loop.seed_examples(1 if eft else 0)


def test_the_system_message_is_learnt_with_its_row_in_sft_and_in_replay(base):
    ift = [{"prompt": "Say owl.", "response": "owl", "system": BRIEF}]
    ift += [{"prompt": "Say fig.", "response": "fig"}]
    tokenizer, models = tiny_tokenizer(), Trained(base)
    models.sft("M1", base, examples_of(ift), SETTINGS.sft)
    whole = [
        Row(*encode_example(tokenizer, "Say owl.", "owl", BRIEF)),
        Row(*encode_example(tokenizer, "Say fig.", "fig")),
    ]
    assert models.data == whole
    assert len(whole[0].ids) > len(encode_example(tokenizer, "Say owl.", "owl")[0])
    models.dpo("M2", base, [PAIR], examples_of(ift), SETTINGS.dpo)
    assert models.replay == whole


def test_what_the_run_made_and_the_model_cannot_read_is_left_out_and_counted(base):
    models = Trained(base)
    short, long = Example("Say owl.", "owl"), Example("long " * 300, "owl")
    models.sft("M1", base, [long, short, long], SETTINGS.sft)
    assert models.data == [Row(*encode_example(tiny_tokenizer(), "Say owl.", "owl"))]
    assert models.counts == {"too_long": 2}
    assert "M1: 2 examples of more than 256 tokens are left out" in models.lines
    models.dpo("M2", base, [PAIR], [short, long], SETTINGS.dpo)
    assert len(models.replay) == 1 and models.counts == {"too_long": 1}


@pytest.mark.parametrize("answer", ["chosen", "rejected"])
def test_a_pair_that_the_model_cannot_read_is_left_out_and_counted(base, answer):
    """Of an answer that filled the context: encoded again, it may be longer."""
    models = Trained(base)
    models.dpo("M2", base, [PAIR, PAIR | {answer: "long " * 300}, PAIR], [], SETTINGS.dpo)
    whole = Row(*encode_example(tiny_tokenizer(), PAIR["prompt"], PAIR["chosen"]))
    assert [pair.chosen for pair in models.data] == [whole, whole]
    assert models.counts == {"too_long": 1}
    assert "M2: 1 pairs of more than 256 tokens are left out" in models.lines


def test_a_reference_of_another_model_is_of_the_pairs_that_are_left(base):
    models = Trained(base)
    pairs = [PAIR, PAIR | {"chosen": "long " * 300}]
    models.dpo("M2", base, pairs, [], SETTINGS.dpo, reference=base)
    assert [len(side) for side in models.pair_logps(base, pairs)] == [1, 1]


def test_pairs_that_are_left_must_be_enough(base):
    models = Trained(base)
    with pytest.raises(ValueError, match=r": 0 preference pairs for M2, at least 1 are needed"):
        models.dpo("M2", base, [PAIR | {"chosen": "long " * 300}], [], SETTINGS.dpo)
    assert models.data is None


@pytest.mark.parametrize("file", ["ift", "eft"])
def test_a_row_that_was_given_and_cannot_be_read_is_named_before_the_training(base, file):
    ift = [{"prompt": "Say owl.", "response": "owl"}] * 2
    eft = [{"prompt": "p", "response": "r", "judgement": "Score: 5"}] * 2
    rows = {"ift": ift, "eft": eft}[file]
    rows[1] = rows[1] | {"prompt": "long " * 300}
    models = Trained(base)
    with pytest.raises(ValueError, match=rf"{file}.jsonl:2: .* 12\d\d tokens, .* 256; shorten"):
        models.sft("M1", base, examples_of(ift, eft), SETTINGS.sft)
    assert models.data is None
