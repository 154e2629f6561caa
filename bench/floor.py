"""The least arithmetic that a workload takes, and the rate at which this machine does arithmetic.

Operations are multiplications and additions of fp32, counted apart; norms, softmax and sampling are
left out. No opponent can go below this floor, and no engine of ours either.
"""

# P tokens of a prompt, N new tokens of a sample

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from dpo import Pair, Row
from llama import LlamaConfig

TRAINING = 3  # a backward pass takes twice a forward pass: gradients of weights and of inputs
TRIES = 20


def sgemm_rate(size: int = 1024) -> float:
    """Operations a second of an fp32 product of two square matrices: the best of some tries."""
    a, b = torch.rand(2, size, size)
    best = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def forward(config: LlamaConfig, tokens: int, seen: int, scored: int, seen_by_scored: int) -> int:
    """Operations of a forward pass over some tokens.

    seen: how many tokens each of them attends to, added up. scored: of how many logits are wanted,
    and what those see; of the others the last block needs keys and values alone.
    """
    query_and_output = 2 * 2 * config.dim * config.n_heads * config.head_dim
    key_and_value = 2 * 2 * config.dim * config.n_kv_heads * config.head_dim
    others = query_and_output + 2 * 3 * config.dim * config.ffn_dim
    pair_seen = 4 * config.n_heads * config.head_dim  # a product with a key, one with a value
    block = (others + key_and_value) * tokens + pair_seen * seen
    last = others * scored + key_and_value * tokens + pair_seen * seen_by_scored
    logits = 2 * config.dim * config.vocab_size
    return (config.n_layers - 1) * block + last + logits * scored


def sampling(config: LlamaConfig, groups: Iterable[tuple[int, Iterable[int]]]) -> int:
    """Operations for prompts of P tokens with samples of N: each prompt is read once.

    A sample's last token is not read, and its first one comes of the prompt.
    """
    total = 0
    for P, samples in groups:
        total += forward(config, P, _causal(P), 1, P)
        for N in samples:
            seen = _causal(P + N - 1) - _causal(P)
            total += forward(config, N - 1, seen, N - 1, seen)
    return total


def preferences(config: LlamaConfig, pairs: Iterable[Pair]) -> int:
    """Operations of an epoch of DPO, the reference aside: what a pair shares is read once."""
    total = 0
    for pair in pairs:
        P = pair.chosen.is_response.index(True)
        chosen, rejected = len(pair.chosen.ids), len(pair.rejected.ids)
        seen = _causal(chosen) + _causal(rejected) - _causal(P)
        scored = chosen + rejected - 2 * P
        seen_by_scored = _causal(chosen - 1) + _causal(rejected - 1) - 2 * _causal(P - 1)
        total += TRAINING * forward(config, P + scored, seen, scored, seen_by_scored)
    return total


def instructions(config: LlamaConfig, rows: Iterable[Row]) -> int:
    """Operations of an epoch of SFT on rows whose response is their end."""
    total = 0
    for row in rows:
        P, T = row.is_response.index(True), len(row.ids)
        seen_by_scored = _causal(T - 1) - _causal(P - 1)
        total += TRAINING * forward(config, T, _causal(T), T - P, seen_by_scored)
    return total


def _causal(T: int) -> int:
    """Tokens seen by the T tokens of a text, added up: 1 + 2 + … + T."""
    return T * (T + 1) // 2
