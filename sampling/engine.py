"""Turns token lists into token lists, many at once. Knows no text, no ranks, no gradients.

Continuous batching: a sample that ends leaves at once, and the next request's take its slot.
```
  step     1 2 3 4 5 6 7
  slot 0   a a a a d d d      a ended after four tokens; d's prompt was read, and d took the slot
  slot 1   b b b b b b b
```
A sample is the same whoever is beside it: its randomness belongs to (seed, request, sample, place).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from llama.cache import token_bytes
from llama.config import LlamaConfig
from llama.model import Llama
from sampling.batch import Ask, Batch, Decoding, Sample
from sampling.sample import key

LEAST_SHARED = 16  # tokens that all prompts begin with; fewer are not worth the trouble
FREE_SHARE = 0.8  # of a GPU's free memory is the cache's; the rest is for one step's activations
REFILL_SHARE = 1 / 4  # of the slots must be free before prompts are read: one by one is slow


@dataclass(frozen=True)
class Request:
    """A prompt that wants n samples. `id` names its randomness."""

    id: str
    token_ids: list[int]
    n: int = 1


@dataclass(frozen=True)
class Progress:
    """How far `generate` is."""

    ready: int  # samples
    running: int  # samples in progress
    tokens: int  # written


def generate(
    model: Llama,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    seed: int,
    slots: int = 512,
    kv_bytes: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[list[Sample]]:
    """n samples of every request, in the order of the requests.

    slots: samples worked on at once; kv_bytes: what the cache may take, by default most of what a
    GPU has free, without bound on a CPU. Both change the speed only. Where memory runs out all
    the same, half the slots are tried.
    progress: called after every step.
    A sample ends unfinished after `max_new_tokens`, or where the context is full: a prompt that
    fills it by itself gets samples without a token.
    Raises ValueError for impossible settings, an empty prompt, an id outside the vocabulary, a
    kv_bytes in which one prompt and its samples do not fit, and for logits that are not numbers.
    """
    _check(requests, decoding, slots, model.config.vocab_size)
    training = model.training
    model.eval()
    try:
        while True:
            try:
                return _run(model, requests, decoding, seed, slots, kv_bytes, progress)
            except torch.OutOfMemoryError:
                if slots == 1:
                    raise
            slots //= 2  # not in the except clause, which keeps the failed batch alive
    finally:
        model.train(training)


@torch.inference_mode()
def _run(
    model: Llama,
    requests: Sequence[Request],
    decoding: Decoding,
    seed: int,
    slots: int,
    kv_bytes: int | None,
    progress: Callable[[Progress], None] | None,
) -> list[list[Sample]]:
    samples = [[Sample([], finished=False)] * request.n for request in requests]
    asks = [
        Ask(place, key(request.id), request.token_ids, range(request.n), limit)
        for place, request in enumerate(requests)
        if (limit := _limit(request, decoding, model.config)) > 0
    ]
    if not asks:
        return samples
    batch = Batch(model, decoding, seed)
    if shared := _common([ask.prompt for ask in asks]):
        batch.share(asks[0].prompt[:shared])
        asks = [replace(ask, prompt=ask.prompt[shared:]) for ask in asks]
    # the longest prompts first: those beside each other are then of about one length
    waiting = deque(sorted(_split(asks, slots), key=lambda ask: -len(ask.prompt)))
    weight = next(model.parameters())
    room = _free_bytes(weight.device) if kv_bytes is None else kv_bytes
    kv_tokens = room / token_bytes(model.config, weight.dtype)
    ready = tokens = 0
    while waiting or batch.owners:
        asked = _next(waiting, batch, slots, kv_tokens)
        ended = batch.read(asked) if asked else batch.step()
        for (request, number), sample in ended:
            samples[request][number] = sample
        ready += len(ended)
        tokens += sum(len(ask.samples) for ask in asked) or len(batch.owners) + len(ended)
        if progress:
            progress(Progress(ready, len(batch.owners), tokens))
    return samples


@torch.inference_mode()
def stream(model: Llama, request: Request, decoding: Decoding, *, seed: int) -> Iterator[Sample]:
    """One sample of a request as it grows, token by token; the last is what `generate` gives.

    Raises ValueError as `generate` does.
    """
    _check([request], decoding, 1, model.config.vocab_size)
    limit = _limit(request, decoding, model.config)
    if limit <= 0:
        yield Sample([], finished=False)
        return
    training = model.training
    model.eval()
    try:
        batch = Batch(model, decoding, seed)
        ended = batch.read([Ask(0, key(request.id), request.token_ids, range(1), limit)])
        while not ended:
            yield batch.sample(0)
            ended = batch.step()
        yield ended[0][1]
    finally:
        model.train(training)


def _free_bytes(device: torch.device) -> float:
    """What the cache may take of a GPU: most of what is free there, or free again in torch's hands.

    Ordinary memory has no such bound: it would be shared with who knows whom.
    """
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(FREE_SHARE * (free + unused))


def _limit(request: Request, decoding: Decoding, config: LlamaConfig) -> int:
    return min(decoding.max_new_tokens, config.max_seq_len - len(request.token_ids))


def _common(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with that are worth reading once for all: 0 if few."""
    first, last = min(prompts), max(prompts)  # the two that differ soonest
    most = min(map(len, prompts)) - 1  # each keeps a token of its own, which predicts the next
    common = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), most)
    common = min(common, most)
    return common if common >= LEAST_SHARED and first != last else 0


def _split(asks: Sequence[Ask], slots: int) -> Iterator[Ask]:
    """Asks that fit into the slots; one of more samples is cut, and its prompt read more often."""
    for ask in asks:
        for start in range(0, len(ask.samples), slots):
            yield replace(ask, samples=ask.samples[start : start + slots])


def _next(waiting: deque[Ask], batch: Batch, slots: int, kv_tokens: float) -> list[Ask]:
    """Takes what is to be read now from the queue: prompts of about one length, if any."""
    free_slots, free_tokens = slots - len(batch.owners), kv_tokens - batch.cache.tokens_held
    if not waiting or (batch.owners and free_slots < REFILL_SHARE * slots):
        return []
    asked: list[Ask] = []
    longest, new, samples = len(waiting[0].prompt), waiting[0].limit, 0
    while waiting and longest - len(waiting[0].prompt) <= max(16, longest // 4):
        samples, new = samples + len(waiting[0].samples), max(new, waiting[0].limit)
        if samples > free_slots or longest * (len(asked) + 1) + new * samples > free_tokens:
            break
        asked.append(waiting.popleft())
    if not asked and not batch.owners:
        raise ValueError(
            f"kv_bytes has room for {kv_tokens:.0f} tokens, but a prompt of {longest} with "
            f"{samples} samples of {new} needs more: allow more, or fewer slots"
        )
    return asked


def _check(requests: Sequence[Request], decoding: Decoding, slots: int, vocab_size: int) -> None:
    if slots < 1:
        raise ValueError(f"slots is {slots}; it must be 1 or more")
    if decoding.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {decoding.max_new_tokens}; it must be 1 or more")
    if not 0 <= decoding.temperature < math.inf:
        raise ValueError(f"temperature is {decoding.temperature}; it must be 0 or more")
    if not 0 < decoding.top_p <= 1:
        raise ValueError(f"top_p is {decoding.top_p}; it must be above 0 and at most 1")
    if not all(0 <= stop < vocab_size for stop in decoding.stop_ids):
        raise ValueError(f"a stop id of {sorted(decoding.stop_ids)} is outside the vocabulary")
    for request in requests:
        ids, name = request.token_ids, f"request {request.id!r}"
        if request.n < 1:
            raise ValueError(f"{name} wants {request.n} samples; it must want 1 or more")
        if not ids:
            raise ValueError(f"{name} has an empty prompt; begin it with <s>, at least")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"{name} has ids outside the model's vocabulary of {vocab_size}")
