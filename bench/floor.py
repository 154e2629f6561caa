"""The least arithmetic that a workload takes, and the rate at which this machine does arithmetic.

Operations are multiplications and additions of fp32, counted apart; norms, softmax and sampling are
left out. No opponent can go below this floor, and no engine of ours either.
"""

# P tokens of a prompt, N new tokens of a sample

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from dpo import Pair
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


def forward(config: LlamaConfig, tokens: int, seen: int, scored: int) -> int:
    """Operations of a forward pass over some tokens.

    seen: how many tokens each of them attends to, added up. scored: of how many logits are wanted.
    """
    attention = 2 * config.dim * (config.n_heads + config.n_kv_heads) * config.head_dim
    block = 2 * (attention + 3 * config.dim * config.ffn_dim)
    pairs_seen = 4 * config.n_heads * config.head_dim  # a product with a key, one with a value
    logits = 2 * config.dim * config.vocab_size
    return config.n_layers * (block * tokens + pairs_seen * seen) + logits * scored


def sampling(config: LlamaConfig, groups: Iterable[tuple[int, Iterable[int]]]) -> int:
    """Operations for prompts of P tokens with samples of N: each prompt is read once.

    A sample's last token is not read, and its first one comes of the prompt.
    """
    total = 0
    for P, samples in groups:
        total += forward(config, P, _causal(P), 1)
        for N in samples:
            total += forward(config, N - 1, _causal(P + N - 1) - _causal(P), N - 1)
    return total


def training(config: LlamaConfig, pairs: Iterable[Pair]) -> int:
    """Operations of an epoch of DPO, the reference aside: what a pair shares is read once."""
    total = 0
    for pair in pairs:
        P = pair.chosen.is_response.index(True)
        chosen, rejected = len(pair.chosen.ids), len(pair.rejected.ids)
        seen = _causal(chosen) + _causal(rejected) - _causal(P)
        answers = chosen + rejected - 2 * P
        total += TRAINING * forward(config, P + answers, seen, answers)
    return total


def _causal(T: int) -> int:
    """Tokens seen by the T tokens of a text, added up: 1 + 2 + … + T."""
    return T * (T + 1) // 2
