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
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from llama.cache import token_bytes
from llama.children import most_processes
from llama.config import LlamaConfig
from llama.model import Llama
from llama.plan import slots_for
from llama.shortage import out_of_memory
from llama.varlen import HALF
from sampling.batch import Ask, Batch, Decoding, Owner, Sample
from sampling.lanes import Lanes
from sampling.sample import key
from sampling.spread import Made, Parts, Progress, Request, Tell, over_processes

LEAST_SHARED = 16  # tokens that all prompts begin with; fewer are not worth the trouble
FREE_SHARE = 0.8  # of a GPU's free memory is the cache's; the rest is for one step's activations
FORK_SAMPLES = 64  # for fewer samples a process more is not worth its start


def generate(
    model: Llama, requests: Sequence[Request], decoding: Decoding, *, seed: int, **how: Any
) -> Made:
    """n samples of every request, in their order: `generate_parts` of one part."""
    [made] = generate_parts(model, [requests], decoding, seed=seed, **how)
    return made


def generate_parts(
    model: Llama,
    parts: Parts,
    decoding: Decoding,
    *,
    seed: int,
    slots: int | None = None,
    kv_bytes: int | None = None,
    processes: int | None = None,
    together: bool = False,
    progress: Tell | None = None,
) -> Iterator[Made]:
    """n samples of every request, in the order of the requests, part by part. A part begins when
    slots become free, while the last samples of the one before are written.

    slots: samples worked on at once, in all processes, by default `slots_for` the model. kv_bytes:
    what the cache may take, by default most of what a GPU has free, without bound on a CPU.
    processes: by default one a thread of torch's, on a CPU and without kv_bytes, if there is enough
    to do. All three change the speed only. Where memory runs out all the same, half the slots are
    tried, unless other ranks do this too, token by token: all must do the same, and who runs out
    raises. progress: called after every step. A sample ends unfinished after `max_new_tokens`, or
    where the context is full. A request whose prompt fills the context, or one sample of which is
    more than kv_bytes, gets samples without a token whose `refused` says why.
    Raises ValueError for impossible settings, an empty prompt, an id outside the vocabulary, for
    logits that are not numbers, and where memory is too short for one sample at a time.
    """
    requests = list(chain.from_iterable(parts))
    slots = slots_for(model.config, next(model.parameters()).itemsize) if slots is None else slots
    _check(requests, decoding, slots, model.config.vocab_size)
    tell = progress or (lambda progress: None)
    count = _processes(model, requests, kv_bytes) if processes is None else processes
    make = partial(
        _make,
        model,
        decoding=decoding,
        seed=seed,
        slots=-(-slots // count),
        kv_bytes=kv_bytes,
        together=together,
    )
    if count > 1:
        return over_processes(make, parts, decoding.max_new_tokens, count, tell)
    return make(parts, tell)


def _processes(model: Llama, requests: Sequence[Request], kv_bytes: int | None) -> int:
    """How many processes there is work for."""
    if kv_bytes is not None:
        return 1
    samples = sum(request.n for request in requests)
    most = most_processes(next(model.parameters()).device)
    return max(1, min(most, len(requests), samples // FORK_SAMPLES))


def _make(
    model: Llama,
    parts: Parts,
    tell: Tell,
    *,
    decoding: Decoding,
    seed: int,
    slots: int,
    kv_bytes: int | None,
    together: bool,
) -> Iterator[Made]:
    """Each part's samples in turn, in this process."""
    training, given = model.training, 0
    model.eval()
    try:
        while given < len(parts):
            try:
                for made in _run(model, parts[given:], decoding, seed, slots, kv_bytes, tell):
                    given += 1
                    yield made
                return
            except (RuntimeError, MemoryError) as error:
                if together or not out_of_memory(error):
                    raise
                if slots == 1:
                    raise ValueError(f"not even one sample at a time fits: {error}") from error
            slots //= 2  # not in the except clause, which keeps the failed batch alive
    finally:
        model.train(training)


@torch.inference_mode()
def _run(
    model: Llama,
    parts: Parts,
    decoding: Decoding,
    seed: int,
    slots: int,
    kv_bytes: int | None,
    tell: Tell,
) -> Iterator[Made]:
    requests = list(chain.from_iterable(parts))
    part_of = [number for number, part in enumerate(parts) for _ in part]
    asks = [
        Ask(place, key(request.id), request.token_ids, range(request.n), limit)
        for place, request in enumerate(requests)
        if (limit := _limit(request, decoding, model.config)) > 0
    ]
    prefix = asks[0].prompt[: _common([ask.prompt for ask in asks])] if asks else []
    asks = [replace(ask, prompt=ask.prompt[len(prefix) :]) for ask in asks]
    # a part's longest prompts first: those beside each other are then of about one length
    asks.sort(key=lambda ask: (part_of[ask.request], -len(ask.prompt)))
    room = _room(model, kv_bytes)
    waiting = deque(one for ask in asks for one in _pieces(ask, slots, room - len(prefix)))
    samples = _refusals(requests, waiting, model.config)
    owed = Counter(part_of[ask.request] for ask in waiting for _ in ask.samples)
    batch = _batch(model, decoding, seed, slots, room, waiting, prefix) if waiting else None
    total = sum(request.n for request in requests)
    for number in range(len(parts)):
        while batch and owed[number]:
            asked = batch.take(waiting)
            assert asked or batch.owners, waiting[0]  # `_pieces` let pass only what fits
            ended = batch.read(asked) if asked else batch.step()
            samples |= ended
            owed.subtract(part_of[place] for (place, _), _ in ended)
            tell(Progress(total - owed.total(), len(batch.owners), batch.tokens))
        places = [place for place, part in enumerate(part_of) if part == number]
        yield [[samples.pop((i, k)) for k in range(requests[i].n)] for i in places]


@torch.inference_mode()
def stream(model: Llama, request: Request, decoding: Decoding, *, seed: int) -> Iterator[Sample]:
    """One sample of a request as it grows, token by token; the last is what `generate` gives.

    Raises ValueError as `generate` does.
    """
    _check([request], decoding, 1, model.config.vocab_size)
    limit = _limit(request, decoding, model.config)
    if limit <= 0:
        yield _refusals([request], [], model.config)[0, 0]
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


def _room(model: Llama, kv_bytes: int | None) -> float:
    """The cache's bound in tokens: of kv_bytes or of what there is."""
    weight = next(model.parameters())
    room = bytes_at_hand(weight.device) if kv_bytes is None else kv_bytes
    return math.inf if room is None else room / token_bytes(model.config, weight.dtype)


def bytes_at_hand(device: torch.device) -> int | None:
    """For a cache: most of what a GPU has free; None, no bound, of memory that others share."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # what torch keeps in pieces would not hold the cache's two large ones
    free, _ = torch.cuda.mem_get_info(device)
    return int(FREE_SHARE * free)


def _limit(request: Request, decoding: Decoding, config: LlamaConfig) -> int:
    return min(decoding.max_new_tokens, config.max_seq_len - len(request.token_ids))


def _batch(
    model: Llama,
    decoding: Decoding,
    seed: int,
    slots: int,
    room: float,
    asks: Sequence[Ask],
    prefix: list[int],
) -> Batch | Lanes:
    """What the asks are read into, once it has read what they all begin with."""
    batch: Batch | Lanes
    if _in_lanes(next(model.parameters()), model.config.head_dim):
        batch = Lanes(model, decoding, seed, slots, room, asks, len(prefix))
    else:
        batch = Batch(model, decoding, seed, slots, room)
    if prefix:
        batch.share(prefix)
    return batch


def _in_lanes(weight: Tensor, head_dim: int) -> bool:
    """Whether lanes are made for this: a GPU, Ampere or later, and its flash kernel's types."""
    known = weight.device.type == "cuda" and weight.dtype in HALF and head_dim % 8 == 0
    return known and torch.cuda.get_device_capability(weight.device) >= (8, 0)


def _common(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with that are worth reading once for all: 0 if few."""
    first, last = min(prompts), max(prompts)  # the two that differ soonest
    most = min(map(len, prompts)) - 1  # each keeps a token of its own, which predicts the next
    common = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), most)
    common = min(common, most)
    return common if common >= LEAST_SHARED and first != last else 0


def _pieces(ask: Ask, slots: int, room: float) -> list[Ask]:
    """The ask, or where its samples need more slots or room than there are, several that do not,
    each reading the prompt again; none where even one sample needs too much.
    """
    together = int(min(slots, (room - len(ask.prompt)) // ask.limit, len(ask.samples)))
    if together < 1:
        return []
    starts = range(0, len(ask.samples), together)
    return [replace(ask, samples=ask.samples[start : start + together]) for start in starts]


def _refusals(
    requests: Sequence[Request], waiting: Iterable[Ask], config: LlamaConfig
) -> dict[Owner, Sample]:
    """Samples without a token for every request that is not waiting."""
    served = {ask.request for ask in waiting}
    samples: dict[Owner, Sample] = {}
    for place, request in enumerate(requests):
        length, longest = len(request.token_ids), config.max_seq_len
        why = f"a prompt of {length} tokens fills the context of {longest}"
        if length < longest:
            why = f"the cache has no room for a prompt of {length} tokens and one sample"
        if place not in served:
            samples |= {(place, k): Sample([], False, refused=why) for k in range(request.n)}
    return samples


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
    if not all(0 <= token < vocab_size for token in decoding.watch):
        raise ValueError(f"a watched id of {decoding.watch} is outside the vocabulary")
    for request in requests:
        ids, name = request.token_ids, f"request {request.id!r}"
        if request.n < 1:
            raise ValueError(f"{name} wants {request.n} samples; it must want 1 or more")
        if not ids:
            raise ValueError(f"{name} has an empty prompt; begin it with <s>, at least")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"{name} has ids outside the model's vocabulary of {vocab_size}")
