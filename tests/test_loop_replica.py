"""A trained model samples without being read back, and is to the bit what its files would give."""

from dataclasses import replace

import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from dpo import TrainSettings
from llama.parallel import start
from loop import models, replica
from loop.models import Models
from loop.run import Run
from loop.settings import Settings

EXAMPLES = [("Count the words.", "There are 3 words."), ("Is it raining?", "No.")] * 3
HOW = TrainSettings(learning_rate=1e-3, batch_size=2, max_steps=2, dropout=0.0)


@pytest.fixture
def begun(tmp_path):
    """Makes a run with a trained M1: its models and M1's directory."""
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "M0")

    def make(dtype="float32", lora_rank=0):
        settings = replace(Settings(), dtype=dtype)
        with Run.open(tmp_path / f"{dtype}{lora_rank}", {}, start()) as run:
            ours = Models(run, settings, start())
            how = replace(HOW, lora_rank=lora_rank)
            return ours, ours.sft("M1", tmp_path / "M0", EXAMPLES, how)

    return make


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def no_file(*_, **__):
    raise AssertionError("this was to come from memory")


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_trained_samples_from_memory_with_the_bits_of_its_files(
    begun, monkeypatch, dtype, lora_rank
):
    monkeypatch.setattr(models, "load_replica", no_file)
    ours, path = begun(dtype, lora_rank)
    speaker = ours.speaking(path)
    read, _, _ = replica.load_replica(path, start(), getattr(torch, dtype))
    found, expected = weights(speaker.model), weights(read)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name]), name
    first = weights(tiny_model().to(getattr(torch, dtype)))
    assert any(not torch.equal(found[name], first[name]) for name in found)  # it has learnt
    assert ours.speaking(path) is speaker


@pytest.mark.parametrize("reason", ["another model", "another training", "no room", "no memory"])
def test_else_it_is_read(begun, tmp_path, monkeypatch, reason):
    seen = []
    monkeypatch.setattr(models, "load_replica", lambda path, *_: seen.append(path) or no_file())
    ours, path = begun()
    if reason == "another model":
        path = tmp_path / "M0"
    elif reason == "another training":
        ours._trainable(tmp_path / "M0")
    else:
        room = (
            None
            if reason == "no memory"
            else 1.9 * sum(weight.nbytes for weight in tiny_model().parameters())
        )
        monkeypatch.setattr(replica, "least_memory", lambda group: room)
    with pytest.raises(AssertionError, match="from memory"):
        ours.speaking(path)
    assert seen == [path] and ours._trained is None
