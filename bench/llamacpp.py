"""Sampling by llama.cpp, on the same weights, prompts and lengths: another opponent of our engine.

It is told how long each sample gets, as `transformers` is, and shares all that it can: what all
prompts begin with is read once, a prompt once for all of its samples, by copies within its KV
cache. A sample that is long enough leaves at once, and the next prompt takes its place. Its own
chain of samplers draws the tokens, one after the other: temperature, top-p, a draw. Neither loading
the weights nor setting up the cache is timed. All is fp32, but for one advantage that it may take:
its flash attention rounds keys and values to fp16 on a CPU, and then its cache is fp16 too.
"""

# S sequences beside each other, T tokens of a batch

from __future__ import annotations

import ctypes
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.gguf_twin import write_gguf
from bench.race import Run
from bench.shapes import TEMPERATURE, TOP_P
from llama import Llama

LEAST_SHARED = 16  # tokens that all prompts begin with: fewer are not worth a copy
UBATCH = 2048  # tokens in one pass over the weights, at most
SEED = 0
INSTALL = "make .venv/installed-peers"  # what to say where `missing()` names a package

Row = tuple[list[int], list[int]]  # a prompt, and how many tokens each of its samples gets


@dataclass(frozen=True)
class Setting:
    """What llama.cpp leaves to its user."""

    sequences: int  # samples beside each other
    flash: bool = False

    def __str__(self) -> str:
        attention = "flash attention, fp16 KV" if self.flash else "fp32"
        return f"{self.sequences} sequences, {attention}"


SETTINGS = tuple(Setting(size, flash) for flash in (False, True) for size in (32, 64))


def missing() -> list[str]:
    """The packages that this needs and that are not here."""
    return [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]


class Twin:
    """The same weights in llama.cpp's hands."""

    def __init__(self, model: Llama) -> None:
        self.api = import_module("llama_cpp")
        # above all that it says: it takes llama.cpp's warnings for errors
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        settings = self.api.llama_model_default_params()
        settings.load_mode = self.api.LLAMA_LOAD_MODE_NONE  # into memory, for the file goes
        with TemporaryDirectory() as directory:
            file = Path(directory) / "twin.gguf"
            write_gguf(model, file)
            self.model = self.api.llama_model_load_from_file(os.fsencode(file), settings)
        assert self.model, "llama.cpp does not read what we wrote"
        weakref.finalize(self, self.api.llama_model_free, self.model)

    @contextmanager
    def context(self, setting: Setting, place: int, batch: int, threads: int) -> Iterator[Any]:
        """Room for sequences up to so many places, one more than asked, and for so large batches.

        One KV buffer for all suits flash attention, which skips what a sequence does not see;
        without it a buffer each is quicker.
        """
        settings = self.api.llama_context_default_params()
        settings.n_seq_max = settings.n_outputs_max = setting.sequences + 1
        settings.n_ctx = settings.n_seq_max * place
        settings.n_batch, settings.n_ubatch = batch, min(batch, UBATCH)
        settings.n_threads = settings.n_threads_batch = threads
        kind = self.api.GGML_TYPE_F16 if setting.flash else self.api.GGML_TYPE_F32
        settings.type_k = settings.type_v = kind
        settings.flash_attn_type = int(setting.flash)
        settings.kv_unified = setting.flash
        context = self.api.llama_init_from_model(self.model, settings)
        assert context, setting
        try:
            yield context
        finally:
            self.api.llama_free(context)

    @contextmanager
    def chain(self) -> Iterator[Any]:
        """What draws a token."""
        chain = self.api.llama_sampler_chain_init(self.api.llama_sampler_chain_default_params())
        for sampler in (
            self.api.llama_sampler_init_temp(TEMPERATURE),
            self.api.llama_sampler_init_top_p(TOP_P, 1),
            self.api.llama_sampler_init_dist(SEED),
        ):
            self.api.llama_sampler_chain_add(chain, sampler)
        try:
            yield chain
        finally:
            self.api.llama_sampler_free(chain)  # and what was added


def run(twin: Twin, rows: Sequence[Row], threads: int, setting: Setting) -> Run:
    """All samples of all rows, begun in the order of the rows."""
    texts, seconds = sample(twin, rows, threads, setting)
    return Run(sum(len(text) for several in texts for text in several), seconds)


def sample(
    twin: Twin, rows: Sequence[Row], threads: int, setting: Setting
) -> tuple[list[list[list[int]]], float]:
    """Each row's samples, and the seconds that they took."""
    prompts, lengths = zip(*rows)
    most, fewest = max(map(len, lengths)), min(map(len, lengths))
    assert setting.sequences >= most and min(map(min, lengths)) > 0, (setting, lengths)
    longest, shared = max(map(len, prompts)), _common(prompts)
    # every sequence has a token, and as many prompts as could find room are read
    batch = setting.sequences * (1 + -(-longest // fewest))
    place = longest + max(map(max, lengths))
    with twin.context(setting, place, batch, threads) as context, twin.chain() as chain:
        work = _Work(twin.api, context, chain, _Batch(twin.api, batch), setting.sequences)
        started = time.perf_counter()
        texts = work.run(rows, shared)
        return texts, time.perf_counter() - started


def _common(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, if enough to be read once for all."""
    # each keeps a token of its own, which predicts the next
    common = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)  # noqa: RUF071
    return common if common >= LEAST_SHARED else 0


@dataclass
class _Sample:
    """One in progress."""

    place: int  # of its latest token
    left: int  # tokens to be drawn
    text: list[int]


class _Work:
    """Samples in progress: the cache's sequence s is `running[s]`, and there is no gap."""

    def __init__(self, api: Any, context: Any, chain: Any, batch: _Batch, sequences: int) -> None:
        self.api, self.context, self.chain, self.batch = api, context, chain, batch
        self.memory = api.llama_get_memory(context)
        self.sequences = sequences  # the one beyond them keeps what all prompts begin with
        self.running: list[_Sample] = []

    def run(self, rows: Sequence[Row], shared: int) -> list[list[list[int]]]:
        """Each row's samples; shared: how many tokens all prompts begin with."""
        if shared:
            self.batch.add(rows[0][0][:shared], range(shared), self.sequences, 0)
            self._decode()
        samples = [
            [_Sample(len(prompt) - 1, length, []) for length in lengths] for prompt, lengths in rows
        ]
        waiting = deque((prompt, several) for (prompt, _), several in zip(rows, samples))
        while waiting or self.running:
            self._step(waiting, shared)
        return [[one.text for one in several] for several in samples]

    def _step(self, waiting: deque[tuple[list[int], list[_Sample]]], shared: int) -> None:
        """A token for each that is running, and the first for those that find room."""
        R = len(self.running)
        tokens, places = [one.text[-1] for one in self.running], [one.place for one in self.running]
        self.batch.add(tokens, places, range(R), 1)
        drawn_from = list(range(R))  # the batch's token before each sample's next one
        while waiting and len(self.running) + len(waiting[0][1]) <= self.sequences:
            prompt, several = waiting.popleft()
            drawn_from += [self._read(prompt, shared)] * len(several)
            self.running += several
        self._decode()
        for s in range(R + 1, len(self.running)):
            if drawn_from[s] == drawn_from[s - 1]:  # the prompt was read by its first sample only
                self._copy(s - 1, s)
        for one, i in zip(self.running, drawn_from):
            self._draw(one, i)
        for s in reversed(range(len(self.running))):
            if not self.running[s].left:
                self._leave(s)

    def _read(self, prompt: list[int], shared: int) -> int:
        """Adds a prompt to the batch, for the next sequence; returns where its last token is."""
        s = len(self.running)
        if shared:
            self._copy(self.sequences, s)
        wanted = [0] * (len(prompt) - shared - 1) + [1]
        return self.batch.add(prompt[shared:], range(shared, len(prompt)), s, wanted)

    def _decode(self) -> None:
        failed = self.api.llama_decode(self.context, self.batch.native)
        assert not failed, failed
        self.batch.native.n_tokens = 0

    def _copy(self, source: int, target: int) -> None:
        self.api.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def _draw(self, one: _Sample, i: int) -> None:
        one.text.append(self.api.llama_sampler_sample(self.chain, self.context, i))
        one.place += 1
        one.left -= 1

    def _leave(self, s: int) -> None:
        """Ends sequence s; the last takes its number, for at a gap llama.cpp cuts the batch."""
        self.api.llama_memory_seq_rm(self.memory, s, -1, -1)
        one, last = self.running.pop(), len(self.running)
        if s < last:
            self._copy(last, s)
            self.api.llama_memory_seq_rm(self.memory, last, -1, -1)
            self.running[s] = one


class _Batch:
    """llama.cpp's batch, of up to `size` tokens, over arrays that numpy fills."""

    def __init__(self, api: Any, size: int) -> None:
        self.token_T, self.place_T, self.sequence_T = np.zeros((3, size), np.int32)
        self.wanted_T, self.ones_T = np.zeros(size, np.int8), np.ones(size, np.int32)
        # where each token's list of sequences begins: here, of one
        self.sequences_T = self.sequence_T.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        arrays: dict[str, Any] = {
            "token": self.token_T, "pos": self.place_T, "n_seq_id": self.ones_T,
            "seq_id": self.sequences_T, "logits": self.wanted_T,
        }  # fmt: skip
        kinds = dict(api.llama_batch._fields_)
        self.native = api.llama_batch(n_tokens=0)
        for name, array_T in arrays.items():
            setattr(self.native, name, ctypes.cast(array_T.ctypes.data, kinds[name]))

    def add(self, tokens: Sequence[int], places: Any, sequences: Any, wanted: Any) -> int:
        """Appends tokens, each with its place, its sequence, and whether the next one is wanted;
        returns where the last of them is."""
        T: int = self.native.n_tokens
        some = slice(T, T + len(tokens))
        self.token_T[some], self.place_T[some] = tokens, places
        self.sequence_T[some], self.wanted_T[some] = sequences, wanted
        self.native.n_tokens = T + len(tokens)
        return T + len(tokens) - 1
