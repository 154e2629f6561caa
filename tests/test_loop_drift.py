"""KL to M1: the very tokens that were sampled, their log-probability by both models."""

import math

import pytest
import torch
from dpo_runs import alone as by_itself
from dpo_runs import rows
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from dpo import row_logps
from llama.parallel import start
from loop.models import Models, _said
from loop.settings import Settings
from sampling import Completer, Decoding, Request, generate

PROMPTS = [{"id": f"h{i}", "prompt": f"Count {i} words."} for i in range(5)]


def test_rows_have_the_log_probabilities_that_they_have_alone():
    model, data = tiny_model(), rows(7)
    found = row_logps(model, data, micro_tokens=64, group=start())
    assert found == pytest.approx([by_itself(model, row).item() for row in data], abs=1e-4)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two models of different weights, on disk."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("M1", 0), ("M2", 1)):
        llama.save(tiny_model(seed=seed), tiny_tokenizer(), root / name)
    return root


def drifted(root, ours, theirs):
    models = Models(None, Settings(), start())
    [said] = models.speak_freely(root / ours, [PROMPTS], 12, seed=3)
    return models.drift(root / ours, root / theirs, said)


def test_what_is_said_freely_in_parts_is_what_is_said(two):
    models = Models(None, Settings(), start())
    [whole] = models.speak_freely(two / "M1", [PROMPTS], 12, seed=3)
    parts = list(models.speak_freely(two / "M1", [PROMPTS[:2], PROMPTS[2:]], 12, seed=3))
    assert [len(part) for part in parts] == [2, 3] and parts[0] + parts[1] == whole
    assert [row["id"] for row in whole] == [row["id"] for row in PROMPTS]


def test_from_itself_a_model_has_not_moved(two):
    for row in drifted(two, "M1", "M1"):
        assert row["logp"] == row["logp_before"] < 0


def test_the_samplers_own_log_probabilities_are_the_first(two):
    """And the second are another model's of the same tokens."""
    tokenizer, model, other = tiny_tokenizer(), tiny_model(seed=1), tiny_model(seed=0)
    stop = frozenset({tokenizer.eos_id})
    asks = [Request(p["id"], llama.encode_prompt(tokenizer, p["prompt"])) for p in PROMPTS]
    samples = generate(model, asks, Decoding(1.0, 1.0, 12, stop, logps=True), seed=3)
    found = drifted(two, "M2", "M1")
    for row, ask, (sample,) in zip(found, asks, samples):
        ids = ask.token_ids + sample.token_ids
        assert not sample.finished and row["token_count"] == len(sample.token_ids) == 12
        assert row["logp"] == pytest.approx(math.fsum(sample.logps), abs=1e-3)
        with torch.no_grad():
            logp_TV = other(torch.tensor([ids]))[0].log_softmax(dim=-1)
        scored = range(len(ask.token_ids), len(ids))
        by_other = sum(logp_TV[t - 1, ids[t]].item() for t in scored)
        assert row["logp_before"] == pytest.approx(by_other, abs=1e-3)


def test_a_prompt_that_fills_the_context_has_no_part_in_it(two):
    models, long = Models(None, Settings(), start()), {"id": "L", "prompt": "long " * 300}
    [said] = models.speak_freely(two / "M2", [[long, *PROMPTS]], 12, seed=3)
    assert said[0]["token_ids"] == [] and not said[0]["finished"]
    assert models.drift(two / "M2", two / "M1", said) == drifted(two, "M2", "M1")
    assert models.drift(two / "M2", two / "M1", said[:1]) == []


def test_the_end_counts_where_the_model_said_it():
    tokenizer = tiny_tokenizer()
    asked = llama.encode_prompt(tokenizer, "Count.")
    said = {"prompt": "Count.", "token_ids": [7, 8]}
    whole = _said(tokenizer, said | {"finished": True})
    assert whole.ids == [*asked, 7, 8, tokenizer.eos_id]
    assert whole.is_response == [False] * len(asked) + [True] * 3
    cut = _said(tokenizer, said | {"finished": False})
    assert cut.ids == [*asked, 7, 8] and sum(cut.is_response) == 2


def test_the_estimate_is_unbiased_on_a_model_that_can_be_summed_up():
    """One token of 400: the mean over free samples nears the sum over all tokens."""
    tokenizer, model, other = tiny_tokenizer(), tiny_model(seed=1), tiny_model(seed=0)
    prompt = "Count."
    ids = torch.tensor([llama.encode_prompt(tokenizer, prompt)])
    with torch.no_grad():
        ours_V, theirs_V = (m(ids)[0, -1].double().log_softmax(-1) for m in (model, other))
    exact = (ours_V.exp() * (ours_V - theirs_V)).sum().item()
    completer = Completer(model, tokenizer, progress=False)
    free = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 1, "seed": 0}
    (samples,) = completer([prompt], ids=["p"], n=4000, description="", **free)
    tokens = [one.token_ids[0] if not one.finished else tokenizer.eos_id for one in samples]
    gaps = ours_V[tokens] - theirs_V[tokens]
    error = gaps.std().item() / math.sqrt(len(gaps))
    assert gaps.mean().item() == pytest.approx(exact, abs=4 * error) and 4 * error < exact
