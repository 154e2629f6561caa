"""What sampling takes of memory: what was said, of what there is, and less when that runs out."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_sampling_engine import MODEL, ragged, written

from llama.cache import Cache, token_bytes
from sampling import batch, engine
from sampling.batch import Decoding


@pytest.mark.parametrize("n", [1, 4])
def test_peak_memory_is_what_was_predicted(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """What the cache says that it will hold, when prompts are read, against its tensors' bytes."""
    said, had = [], []
    step, decode = batch.Batch.step, Cache.decode

    def says(this: batch.Batch) -> list:
        said.append(this.cache.tokens_held * token_bytes(MODEL.config, torch.float32))
        return step(this)

    def has(this: Cache):
        attend = decode(this)
        had.append(this.bytes_held)
        return attend

    monkeypatch.setattr(batch.Batch, "step", says)
    monkeypatch.setattr(Cache, "decode", has)
    prompts = [replace(one, token_ids=[9] * 20 + one.token_ids) for one in ragged(40, n)]
    written(prompts, Decoding(0.8, 0.9, 32), slots=64)  # no stops: all grow to what was predicted
    assert max(had) == pytest.approx(max(said), rel=0.05)
    assert all(now <= most for now, most in zip(had, said))


def test_the_engine_has_as_many_slots_as_suit_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run, tried = engine._run, []

    def notes(model, requests, decoding, seed, slots, *rest):
        tried.append(slots)
        return run(model, requests, decoding, seed, slots, *rest)

    monkeypatch.setattr(engine, "_run", notes)
    monkeypatch.setattr(engine, "slots_for", lambda *of: {(MODEL.config, 4): 37}[of])  # fp32
    written(ragged(3), slots=None, processes=1)
    assert tried == [37]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("as if"), RuntimeError("DefaultCPUAllocator: can't"), MemoryError()],
)
def test_out_of_memory_halves_the_slots(monkeypatch: pytest.MonkeyPatch, error) -> None:
    requests, run, tried = ragged(20), engine._run, []
    among = written(requests)

    def greedy(model, requests, decoding, seed, slots, *rest):
        tried.append(slots)
        if slots > 8:
            raise error
        return run(model, requests, decoding, seed, slots, *rest)

    monkeypatch.setattr(engine, "_run", greedy)
    assert written(requests, slots=50) == among
    assert tried == [50, 25, 12, 6]
    monkeypatch.setattr(engine, "_run", lambda *args: greedy(*args[:4], 99, *args[5:]))
    with pytest.raises(ValueError, match="not even one sample at a time fits"):
        written(requests)
    monkeypatch.setattr(engine, "_run", lambda *args: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="size of tensor"):  # another error is not memory's
        written(requests)


def test_the_cache_may_take_most_of_what_a_gpu_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    a_token = token_bytes(MODEL.config, torch.float32)
    free = [70 * a_token]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 100 * a_token))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(free.pop() + 10 * a_token))
    model = SimpleNamespace(
        config=MODEL.config,
        parameters=lambda: iter(
            [SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)]
        ),
    )
    # 0.8 of what is free once torch has given back what it does not use
    assert engine._room(model, None) == pytest.approx(64, abs=0.01)
    assert engine._room(model, 30 * a_token) == 30
    assert engine._room(MODEL, None) == float("inf")
