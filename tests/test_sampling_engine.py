"""Continuous batching: parity with `transformers`, and no sample depends on what is beside it."""

from dataclasses import replace

import pytest
import torch
from test_llama_model import SHAPES, transformers_twin
from tiny_llama import GROUPED, tiny_model
from torch import Tensor

from llama.cache import token_bytes
from sampling import batch
from sampling.batch import Decoding, Sample
from sampling.engine import generate
from sampling.spread import Progress, Request

MODEL = tiny_model()
STOPS = frozenset(range(0, GROUPED.vocab_size, 16))  # one token in sixteen ends a sample
DECODING = Decoding(0.8, 0.9, 24, STOPS)


def ragged(count: int, n: int = 1, seed: int = 0) -> list[Request]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=random).tolist()
    prompts = [torch.randint(400, (length,), generator=random).tolist() for length in lengths]
    return [Request(f"r{i}", prompt, n) for i, prompt in enumerate(prompts)]


def written(requests: list[Request], decoding: Decoding = DECODING, **how) -> dict:
    """Samples by request's id."""
    samples = generate(MODEL, requests, decoding, **{"seed": 1, "slots": 32} | how)
    return {request.id: several for request, several in zip(requests, samples)}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_greedy_tokens_are_those_of_transformers(config) -> None:
    model = tiny_model(config)
    twin, requests = transformers_twin(model), ragged(24)
    free = generate(model, requests, Decoding(0.0, 1.0, 20), seed=0)
    eos = free[0][0].token_ids[5]  # so that one sample at least ends in its middle
    ours = generate(model, requests, Decoding(0.0, 1.0, 20, frozenset({eos})), seed=0, slots=8)
    assert any(sample.finished for [sample] in ours) and not all(s.finished for [s] in ours)
    for request, [sample] in zip(requests, ours):
        prompt = torch.tensor([request.token_ids])
        theirs = twin.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=20, eos_token_id=eos, pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        assert sample.token_ids + [eos] * sample.finished == theirs


def by_the_book(request: Request, sample: int, decoding: Decoding, seed: int) -> Sample:
    """One sample, without cache or batch: the whole text anew for every token."""
    from sampling.sample import choose, key, streams, uniforms

    stream = streams(seed, torch.tensor([key(request.id)]), torch.tensor([sample]))
    ids: list[int] = []
    while len(ids) < decoding.max_new_tokens:
        logits_TV = MODEL(torch.tensor([request.token_ids + ids]))[0]
        u = uniforms(stream, torch.tensor([len(ids)]))
        ids.append(int(choose(logits_TV[-1:], u, decoding.temperature, decoding.top_p)))
        if ids[-1] in decoding.stop_ids:
            return Sample(ids[:-1], True)
    return Sample(ids, False)


@torch.inference_mode()
def test_samples_are_those_of_the_plain_algorithm() -> None:
    requests = ragged(12, n=3)
    assert written(requests, slots=7) == {
        request.id: [by_the_book(request, k, DECODING, 1) for k in range(3)] for request in requests
    }


def test_a_request_alone_is_itself_in_any_company() -> None:
    """But for a uniform that falls on the very edge of two tokens: among seed 0's requests one lies
    4e-8 beside it, and the rounding of a matrix product with other rows tips it over.
    """
    requests = ragged(64, n=2, seed=1)
    among = written(requests)
    assert {sample.finished for several in among.values() for sample in several} == {True, False}
    for request in requests[::8]:
        assert written([request]) == {request.id: among[request.id]}
    for slots in (2, 17, 1000):
        assert written(requests, slots=slots) == among
    assert written(requests[::-1]) == among
    assert written([*requests[1:], requests[0]]) == among


def test_samples_of_one_request_are_those_of_many() -> None:
    """Grouped or not; and cut where a request wants more samples than there are slots."""
    [request] = ragged(1, n=11)
    several = written([request])[request.id]
    assert written([replace(request, n=4)])[request.id] == several[:4]
    assert written([request], slots=3)[request.id] == several
    assert len({tuple(sample.token_ids) for sample in several}) > 5


def test_seed_and_id_change_the_samples_and_nothing_else_does() -> None:
    requests = ragged(8)
    assert written(requests) == written(requests)
    assert written(requests, seed=2) != written(requests)
    renamed = [replace(request, id=request.id + "'") for request in requests]
    assert list(written(renamed).values()) != list(written(requests).values())
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    written(requests)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_company_law_notices_a_shared_random_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: numbers drawn in the order of the slots."""
    random = torch.Generator().manual_seed(0)

    def drawn(streams_B: Tensor, positions_B: Tensor) -> Tensor:
        return torch.rand(len(streams_B), dtype=torch.float64, generator=random)

    monkeypatch.setattr(batch, "uniforms", drawn)
    requests = ragged(16)
    assert written(requests) != written(requests[::-1])


def test_parity_notices_a_sampler_that_is_a_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the logits before the prompt's last token."""
    requests = [request for request in ragged(12) if len(request.token_ids) > 1]
    right = written(requests, Decoding(0.0))
    rows = batch.Batch._prefill_rows

    def late(self, prompts: list[list[int]], cohort, part: slice) -> Tensor:
        cohort.prompt_R = cohort.prompt_R - 1
        logits = rows(self, prompts, cohort, part)
        cohort.prompt_R = cohort.prompt_R + 1
        return logits

    monkeypatch.setattr(batch.Batch, "_prefill_rows", late)
    assert written(requests, Decoding(0.0)) != right


def test_stop_tokens_and_budgets() -> None:
    several = [s for samples in written(ragged(32, n=2)).values() for s in samples]
    for sample in several:
        assert not STOPS & set(sample.token_ids)
        assert sample.finished or len(sample.token_ids) == 24
        assert len(sample.token_ids) <= 24
    one = written(ragged(8), replace(DECODING, max_new_tokens=1))
    assert all(len(s.token_ids) + s.finished == 1 for [s] in one.values())


def test_the_context_is_the_limit() -> None:
    prompt = list(range(1, 251))
    requests = [Request("a", prompt), Request("b", prompt[:200]), Request("c", prompt + prompt[:6])]
    made = written(requests, Decoding(0.0, max_new_tokens=20))
    assert [len(samples[0].token_ids) for samples in made.values()] == [6, 20, 0]
    assert not any(samples[0].finished for samples in made.values())


def test_no_requests_no_samples() -> None:
    assert generate(MODEL, [], DECODING, seed=0) == []


def test_kv_bytes_bound_the_cache_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, a_token = ragged(30, n=3), token_bytes(MODEL.config, torch.float32)
    among, held, seen = written(requests), [], []
    step = batch.Batch.step

    def noting(this: batch.Batch) -> list:
        held.append(this.cache.tokens_held)
        return step(this)

    monkeypatch.setattr(batch.Batch, "step", noting)
    tight = 40 + 3 * 24 + 10
    assert written(requests, kv_bytes=tight * a_token, progress=seen.append) == among
    assert 0 < max(held) <= tight
    assert [at.ready for at in seen] == sorted(at.ready for at in seen)
    tokens = sum(len(s.token_ids) + s.finished for several in among.values() for s in several)
    assert seen[-1] == Progress(ready=90, running=0, tokens=tokens)
    assert max(at.running for at in seen) > 1


def test_what_cannot_be_served_is_refused_by_name_and_the_rest_goes_on() -> None:
    """Room for 50 tokens: a prompt of 26 and one sample of 24, no more."""
    requests, a_token = ragged(30, n=3), token_bytes(MODEL.config, torch.float32)
    requests.insert(7, Request("full", [5] * 256, 2))
    among, tight = written(requests), written(requests, kv_bytes=50 * a_token)
    served = {one.id for one in requests if len(one.token_ids) <= 26}
    assert 10 < len(served) < 30
    for request in requests:
        several = tight[request.id]
        if request.id in served:
            assert several == among[request.id]
        else:
            [why] = {sample.refused for sample in several}
            assert [sample.token_ids for sample in several] == [[]] * request.n
            full = "fills the context of 256" if request.id == "full" else "and one sample"
            assert f"a prompt of {len(request.token_ids)} tokens" in why and full in why
    assert [sample.refused is None for sample in among["full"]] == [False] * 2


def test_nan_in_a_weight_raises_and_the_mode_is_restored() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[1].ffn.w2.weight[3, 3] = torch.nan
    for temperature in (0.0, 0.7):
        model.train()
        with pytest.raises(ValueError, match="NaN"):
            generate(model, ragged(3), Decoding(temperature), seed=0)
        assert model.training


@pytest.mark.parametrize(
    ("request_", "decoding", "slots", "complaint"),
    [
        (Request("x", []), DECODING, 8, "'x' has an empty prompt"),
        (Request("x", [1, 400]), DECODING, 8, "'x' has ids outside"),
        (Request("x", [-1]), DECODING, 8, "'x' has ids outside"),
        (Request("x", [1], 0), DECODING, 8, "'x' wants 0 samples"),
        (Request("x", [1]), Decoding(temperature=-1.0), 8, "temperature is -1"),
        (Request("x", [1]), Decoding(temperature=float("nan")), 8, "temperature is nan"),
        (Request("x", [1]), Decoding(top_p=0.0), 8, "top_p is 0"),
        (Request("x", [1]), Decoding(top_p=1.5), 8, "top_p is 1.5"),
        (Request("x", [1]), Decoding(max_new_tokens=0), 8, "max_new_tokens is 0"),
        (Request("x", [1]), Decoding(stop_ids=frozenset({400})), 8, "stop id"),
        (Request("x", [1]), DECODING, 0, "slots is 0"),
    ],
)
def test_settings_that_cannot_be(request_, decoding, slots, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        generate(MODEL, [request_], decoding, seed=0, slots=slots)


def test_logps_are_those_of_a_forward_pass_over_the_whole_text() -> None:
    requests = ragged(20, n=3)
    told = replace(DECODING, logps=True, watch=(5, 300, 5))
    plain, asked = written(requests), written(requests, told, slots=7)
    for request in requests:
        for without, sample in zip(plain[request.id], asked[request.id]):
            assert without == replace(sample, logps=None, watched=None)
            ids = request.token_ids + sample.token_ids
            logp_TV = MODEL(torch.tensor([ids]))[0].log_softmax(dim=-1)
            start = len(request.token_ids) - 1
            theirs = [logp_TV[start + n, token].item() for n, token in enumerate(sample.token_ids)]
            assert sample.logps == pytest.approx(theirs, abs=1e-5)
            chances = logp_TV[start : start + len(sample.token_ids), [5, 300, 5]].exp()
            watched_TW = torch.tensor(sample.watched).view(-1, 3)
            torch.testing.assert_close(watched_TW, chances, atol=1e-6, rtol=1e-4)
