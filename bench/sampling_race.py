"""Sampling: our engine against `transformers`' generate, on the same weights and prompts.

Both draw at the same temperature and top-p. Random weights would end a text anywhere or never, so
ours get an EOS that grows likelier towards a place, and a sample ends where its EOS was drawn.
Theirs is told these lengths, sample by sample, for its stopping criterion: so both make the same
number of tokens. Theirs gets the prompts sorted by length, as ours sorts them itself, all samples
of a prompt in one call, padding on the left; a batch goes on until its longest sample ends.
The rows "against grouping off" race our engine against itself, where each sample is a request of
its own: then no sample shares a prompt, and no prompt what all begin with.
"""

# B samples beside each other, T tokens

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from bench import floor, llamacpp
from bench.race import Race, Run, race
from bench.shapes import TEMPERATURE, TOP_P, Ending, Workload, random_weights, requests
from bench.twin import transformers_twin
from llama import Llama
from sampling import Request, Sample, engine, generate

PAD = 0


def sampling_race(
    workload: Workload, batch_sizes: Sequence[int], rounds: int, seed: int
) -> tuple[Race, int]:
    """The race, and the workload's operations; batch_sizes: in prompts, for the opponent."""
    model, asked, lengths = _field(workload, seed)
    ours = partial(run_ours, model, asked, workload, seed)
    twin, rows = transformers_twin(model), sorted(zip(asked, lengths), key=_prompt_length)
    theirs = {
        f"batches of {size} × {workload.n}": partial(run_theirs, twin, rows, size)
        for size in batch_sizes
    }
    return race(ours, theirs, rounds), _operations(asked, lengths, workload)


def llamacpp_race(
    workload: Workload, settings: Sequence[llamacpp.Setting], rounds: int, seed: int
) -> tuple[Race, int]:
    """The race against llama.cpp, whose packages must be there, and the workload's operations."""
    model, asked, lengths = _field(workload, seed)
    rows = [
        (request.token_ids, several)
        for request, several in sorted(zip(asked, lengths), key=_prompt_length)
    ]
    twin, threads = llamacpp.Twin(model), torch.get_num_threads()
    ours = partial(run_ours, model, asked, workload, seed)
    theirs = {str(one): partial(llamacpp.run, twin, rows, threads, one) for one in settings}
    return race(ours, theirs, rounds), _operations(asked, lengths, workload)


def grouping_race(workload: Workload, rounds: int, seed: int) -> tuple[Race, int]:
    """Our engine against itself, where it shares neither what prompts begin with nor prompts."""
    model, asked, lengths = _field(workload, seed)

    def run_alone() -> Run:
        with grouping_off(asked) as alone:
            return run_ours(model, alone, workload, seed)

    ours = partial(run_ours, model, asked, workload, seed)
    outcome = race(ours, {"a request a sample": run_alone}, rounds)
    return outcome, _operations(asked, lengths, workload)


@contextmanager
def grouping_off(asked: Sequence[Request]) -> Iterator[list[Request]]:
    """A request a sample; inside, what all prompts begin with is shared by none."""
    least, engine.LEAST_SHARED = engine.LEAST_SHARED, sys.maxsize
    try:
        yield [replace(one, id=f"{one.id} {k}", n=1) for one in asked for k in range(one.n)]
    finally:
        engine.LEAST_SHARED = least


@lru_cache(maxsize=1)
def _field(workload: Workload, seed: int) -> tuple[Llama, list[Request], list[list[int]]]:
    """The model, the prompts, and how many tokens our engine draws for each of their samples."""
    model = random_weights(Ending(workload.config, workload.end), seed)
    asked = requests(workload, seed)
    samples = generate(model, asked, workload.decoding(), seed=seed)
    return model, asked, [[drawn(sample) for sample in several] for several in samples]


def _operations(
    asked: Sequence[Request], lengths: Sequence[Sequence[int]], workload: Workload
) -> int:
    prompts = [len(request.token_ids) for request in asked]
    return floor.sampling(workload.config, zip(prompts, lengths))


def run_ours(model: Llama, asked: Sequence[Request], workload: Workload, seed: int) -> Run:
    """Our engine, as the loop calls it."""
    started = time.perf_counter()
    samples = generate(model, asked, workload.decoding(), seed=seed)
    seconds = time.perf_counter() - started
    return Run(sum(drawn(sample) for several in samples for sample in several), seconds)


def run_theirs(twin: Any, rows: Sequence[tuple[Request, list[int]]], size: int) -> Run:
    """`transformers`' generate, so many prompts at a time."""
    started, count = time.perf_counter(), 0
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        lengths_B = torch.tensor([length for _, lengths in some for length in lengths])
        count += _generate(twin, [request for request, _ in some], lengths_B)
    return Run(count, time.perf_counter() - started)


@torch.inference_mode()
def _generate(twin: Any, batch: Sequence[Request], lengths_B: Tensor) -> int:
    """Samples of these lengths; returns how many tokens they have."""
    T, device = max(len(request.token_ids) for request in batch), twin.device
    padding = [T - len(request.token_ids) for request in batch]
    written = twin.generate(
        torch.tensor(
            [[PAD] * left + row.token_ids for left, row in zip(padding, batch)], device=device
        ),
        attention_mask=torch.tensor(
            [[0] * left + [1] * (T - left) for left in padding], device=device
        ),
        num_return_sequences=batch[0].n,
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=int(lengths_B.max()),
        eos_token_id=None,
        pad_token_id=PAD,
        # a function does: what is called is all that generate asks of a criterion
        stopping_criteria=[lambda ids_BT, *_, **__: ids_BT.shape[1] - T >= lengths_B.to(device)],
    )
    return int(lengths_B.clamp(max=written.shape[1] - T).sum())


def drawn(sample: Sample) -> int:
    """Tokens that were drawn for it, with the one that ended it."""
    return len(sample.token_ids) + sample.finished


def _prompt_length(row: tuple[Request, list[int]]) -> int:
    return -len(row[0].token_ids)
