"""What is raced: models, prompts and pairs, of random numbers.

Knows no clock and no opponent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dpo import Pair, Row
from llama import PRESETS, Llama, LlamaConfig
from sampling import Decoding, Request

TINY = replace(PRESETS["tiny"], vocab_size=800)  # the embedded world's model: 0.9M weights
MEDIUM = LlamaConfig(dim=768, n_layers=12, n_heads=12, n_kv_heads=12, ffn_dim=2048)  # 134M weights
MIDDLE = replace(  # 26M weights
    PRESETS["tiny"], vocab_size=800, dim=512, n_layers=8, n_heads=8, n_kv_heads=8, ffn_dim=1376
)
EOS = 2
CONTROL_IDS = 3  # unknown, <s>, </s>
TEMPERATURE, TOP_P = 0.7, 0.9

# Logits of EOS by place: random weights alone would end a text at any place alike. At the end it is
# as likely whatever the vocabulary's size, to whose logarithm the others' logits add up.
EOS_AT_END, EOS_SLOPE = 4.3 - math.log(TINY.vocab_size), 0.175


@dataclass(frozen=True)
class Workload:
    """Prompts that begin alike, of ragged lengths; n samples of each, which end near place `end`.

    `end` counts from the prompt's beginning, so what is new is ragged as prompts are, and more.
    """

    name: str
    prompts: int
    n: int
    template: int  # tokens that all prompts begin with
    shortest: int
    longest: int
    end: int
    config: LlamaConfig = TINY
    most_new: int | None = None  # tokens of a sample; none: as many as fit before `end`

    def decoding(self) -> Decoding:
        """The loop's, with room for the longest samples."""
        return Decoding(TEMPERATURE, TOP_P, self.most_new or self.end, frozenset({EOS}))


JUDGE = Workload("judge rows", prompts=512, n=3, template=20, shortest=45, longest=75, end=105)
CANDIDATES = Workload("candidates", prompts=512, n=4, template=5, shortest=24, longest=32, end=44)
LONG_JUDGE = Workload(
    "134M judge rows",
    prompts=24,
    n=3,
    template=160,
    shortest=200,
    longest=320,
    end=360,
    config=MEDIUM,
)
LONG_CANDIDATES = Workload(
    "134M candidates", prompts=24, n=4, template=5, shortest=60, longest=120, end=160,
    config=MEDIUM,
)  # fmt: skip
PROMPT, RESPONSE = (45, 75), (20, 60)  # tokens in a pair: as many as in a judge row, and ragged
RAGGED = (10, 110)  # tokens of a prompt, and of its response, in rows for SFT


class Ending(Llama):
    """A model whose texts end: while decoding, EOS gets the likelier the nearer `end` is."""

    def __init__(self, config: LlamaConfig, end: int) -> None:
        super().__init__(config)
        self.end = end

    def forward(self, tokens_BT: Tensor, attend: Any = None, *how: Any, **more: Any) -> Any:
        """As `Llama`'s; a single token a row is decoding."""
        logits_BTV = super().forward(tokens_BT, attend, *how, **more)
        if attend is not None and tokens_BT.shape[1] == 1:
            at_end = EOS_AT_END + math.log(self.config.vocab_size)
            logits_BTV[..., EOS] = at_end + EOS_SLOPE * (attend.positions_BT - self.end)
        return logits_BTV


def random_weights(model: Llama, seed: int) -> Llama:
    """The model, with fresh weights, for evaluation."""
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def requests(workload: Workload, seed: int) -> list[Request]:
    """The workload's prompts."""
    draw = torch.Generator().manual_seed(seed)
    size = workload.config.vocab_size
    template = _ids(workload.template, draw, size)
    lengths = _lengths(workload.prompts, workload.shortest, workload.longest, draw)
    rests = [_ids(length - workload.template, draw, size) for length in lengths]
    return [Request(f"p{i}", template + rest, workload.n) for i, rest in enumerate(rests)]


def pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of random answers to random prompts."""
    draw = torch.Generator().manual_seed(seed)
    prompts = [_ids(length, draw) for length in _lengths(count, *PROMPT, draw)]
    answers = [[*_ids(length - 1, draw), EOS] for length in _lengths(2 * count, *RESPONSE, draw)]
    rows = [
        Row(prompt + answer, [False] * len(prompt) + [True] * len(answer))
        for prompt, two in zip(prompts, zip(answers[::2], answers[1::2]))
        for answer in two
    ]
    return [Pair(*both) for both in zip(rows[::2], rows[1::2])]


def rows(count: int, seed: int) -> list[Row]:
    """Random responses to random prompts, both of very different lengths."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for P, N in zip(_lengths(count, *RAGGED, draw), _lengths(count, *RAGGED, draw)):
        made.append(Row([*_ids(P + N - 1, draw), EOS], [False] * P + [True] * N))
    return made


def _lengths(count: int, shortest: int, longest: int, draw: torch.Generator) -> list[int]:
    return torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()


def _ids(count: int, draw: torch.Generator, size: int = TINY.vocab_size) -> list[int]:
    return torch.randint(CONTROL_IDS, size, (count,), generator=draw).tolist()
