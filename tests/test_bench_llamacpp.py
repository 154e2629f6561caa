"""How the bench drives llama.cpp: against a double in Python always, against itself where it is."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import gguf_twin, llamacpp
from bench.llamacpp import INSTALL, Setting, _Batch, _common, _Work, missing, run, sample
from bench.shapes import EOS, TINY, random_weights
from llama import Llama
from sampling import Decoding, Request, generate

INT, INTS = ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)
HERE = pytest.mark.skipif(bool(missing()), reason=f"not here: {missing()}; {INSTALL}")
SETTINGS = [Setting(5), Setting(5, flash=True)]


class Double:
    """llama.cpp's faces that we call: a cache of texts, and a model that counts what it has read.

    The token after a text is a number of the whole text, so a wrong copy is never forgiven.
    """

    class llama_batch(ctypes.Structure):
        _fields_ = (
            ("n_tokens", INT), ("token", INTS), ("embd", ctypes.POINTER(ctypes.c_float)),
            ("pos", INTS), ("n_seq_id", INTS), ("seq_id", ctypes.POINTER(INTS)),
            ("logits", ctypes.POINTER(ctypes.c_int8)),
        )  # fmt: skip

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self.read, self.after = 0, {}

    def llama_get_memory(self, context):
        return context

    def llama_memory_seq_cp(self, memory, source, target, first, end):
        assert (first, end) == (-1, -1) and target not in self.texts
        self.texts[target] = list(self.texts[source])

    def llama_memory_seq_rm(self, memory, s, first, end):
        assert (first, end) == (-1, -1)
        del self.texts[s]

    def llama_decode(self, context, batch):
        self.after, seen = {}, []
        for i in range(batch.n_tokens):
            [s] = (batch.seq_id[i][n] for n in range(batch.n_seq_id[i]))
            text = self.texts.setdefault(s, [])
            assert batch.pos[i] == len(text)
            text.append(batch.token[i])
            seen.append(s)
            if batch.logits[i]:
                self.after[i] = follow(text)
        self.read += batch.n_tokens
        assert seen == sorted(seen) and batch.n_tokens > 0
        return 0

    def llama_sampler_sample(self, chain, context, i):
        return self.after[i]


def follow(text: list[int]) -> int:
    return hash(tuple(text)) % 800


def rows(template: int) -> list[tuple[list[int], list[int]]]:
    draw = np.random.default_rng(0)
    shared = draw.integers(3, 800, template).tolist()
    rests = [draw.integers(3, 800, size).tolist() for size in draw.integers(4, 9, 8)]
    lengths = [draw.integers(1, 12, n).tolist() for n in (3, 2, 5, 1, 3, 4, 3, 2)]
    return [(shared + rest, several) for rest, several in zip(rests, lengths)]


@pytest.mark.parametrize("template", [0, 20])
@pytest.mark.parametrize("sequences", [5, 6, 100])
def test_every_sample_is_what_it_would_be_alone(template, sequences) -> None:
    data, double = rows(template), Double()
    work = _Work(double, None, None, _Batch(double, 1000), sequences)
    shared = _common([prompt for prompt, _ in data])
    assert shared == (template and 20)
    texts = work.run(data, shared)
    for (prompt, lengths), several in zip(data, texts):
        alone = list(prompt)
        for _ in range(max(lengths)):
            alone.append(follow(alone))
        assert several == [alone[len(prompt) :][:length] for length in lengths]
    # what is shared was read once, a prompt once, and no sample's last token
    rests = sum(len(prompt) - shared for prompt, _ in data)
    assert double.read == shared + rests + sum(L - 1 for _, lengths in data for L in lengths)
    assert list(double.texts) == ([sequences] if shared else [])


def test_the_double_forgives_no_wrong_copy(monkeypatch) -> None:
    data, double = rows(0), Double()
    work = _Work(double, None, None, _Batch(double, 1000), 6)
    copy = work._copy
    monkeypatch.setattr(work, "_copy", lambda source, target: copy(0, target))
    with pytest.raises(AssertionError):
        work.run(data, 0)


@HERE
@pytest.mark.parametrize("shape", [{}, {"n_kv_heads": 2, "tie_embeddings": False}], ids=str)
def test_logits_are_ours(shape, monkeypatch) -> None:
    model = random_weights(Llama(replace(TINY, **shape)), 0)
    tokens = torch.randint(800, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model(tokens)[0].numpy()

    def furthest(setting: Setting) -> float:
        twin = llamacpp.Twin(model)
        with twin.context(setting, 50, 50, 1) as context:
            batch = _Batch(twin.api, 50)
            batch.add(tokens[0].tolist(), range(50), 3, [0] * 44 + [1] * 6)
            assert twin.api.llama_decode(context, batch.native) == 0
            theirs = np.ctypeslib.as_array(twin.api.llama_get_logits(context), (6, 800))
            return float(abs(theirs - ours[44:]).max())

    assert furthest(SETTINGS[0]) < 3e-5
    assert 1e-3 < furthest(SETTINGS[1]) < 0.05  # fp16 keys and values
    monkeypatch.setattr(gguf_twin, "pairs_from_halves", lambda name, weight, config: weight)
    assert furthest(SETTINGS[0]) > 0.1


@HERE
def test_greedy_samples_are_ours(monkeypatch) -> None:
    monkeypatch.setattr(llamacpp, "TOP_P", 1e-9)
    model, data = random_weights(Llama(TINY), 0), rows(20)
    twin = llamacpp.Twin(model)
    texts, _ = sample(twin, data, 1, SETTINGS[0])
    asked = [Request(str(i), prompt) for i, (prompt, _) in enumerate(data)]
    greedy = generate(model, asked, Decoding(0.0, 1.0, 12, frozenset({EOS})), seed=0)
    for [ours], several, (_, lengths) in zip(greedy, texts, data):
        assert several == [ours.token_ids[:length] for length in lengths]


@HERE
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_what_counts_is_what_was_asked_for(setting) -> None:
    data = rows(0)
    outcome = run(llamacpp.Twin(random_weights(Llama(TINY), 0)), data, 1, setting)
    assert outcome.count == sum(sum(lengths) for _, lengths in data) and outcome.seconds > 0
