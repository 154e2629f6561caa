"""SFT: our trainer against a plain loop around `transformers`' model, on the same weights and rows.

The loop is what one writes by hand: it shuffles the rows, takes 16 a step, pads them on the right,
as many a forward pass as suit it best, and hands the labels to the model. Both have fused AdamW,
clip the gradient and compute in fp32 without dropout. Counted are the rows' own tokens, prompts
included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import floor
from bench.race import Race, Run, race
from bench.shapes import random_weights, rows
from bench.twin import transformers_twin
from dpo import Row, TrainSettings, train_sft
from dpo.descent import BETAS
from llama import Llama, LlamaConfig
from llama.parallel import current

BATCH = 16  # rows in a step
RATE = 1e-4
IGNORED = -100  # transformers' label of what is not trained on


def sft_race(
    config: LlamaConfig, count: int, batch_sizes: Sequence[int], rounds: int, seed: int
) -> tuple[Race, int]:
    """The race, and an epoch's operations; batch_sizes: rows in the opponent's forward pass."""
    model, data = random_weights(Llama(config), seed), rows(count, seed)
    theirs = {
        f"{size} rows a pass": partial(run_theirs, model, data, size, seed) for size in batch_sizes
    }
    return race(partial(run_ours, model, data, seed), theirs, rounds), floor.instructions(
        config, data
    )


def run_ours(model: Llama, data: Sequence[Row], seed: int) -> Run:
    """An epoch of our trainer, on a copy of the weights."""
    metrics = train_ours(deepcopy(model), data, 1, seed)
    return Run(int(metrics["tokens"]), metrics["seconds"])


def run_theirs(model: Llama, data: Sequence[Row], size: int, seed: int) -> Run:
    """An epoch of the loop, on a copy of the weights."""
    twin, started = transformers_twin(model), time.perf_counter()
    train_theirs(twin, data, size, 1, seed)
    return Run(sum(len(row.ids) for row in data), time.perf_counter() - started)


def train_ours(model: Llama, data: Sequence[Row], epochs: int, seed: int) -> dict[str, float]:
    """Trains the model in place; returns the trainer's metrics."""
    settings = TrainSettings(RATE, epochs=epochs, batch_size=BATCH, dropout=0.0)
    return train_sft(model, data, settings, seed=seed, group=current())


def train_theirs(twin: Any, data: Sequence[Row], size: int, epochs: int, seed: int) -> None:
    """Trains the model in place, `size` rows a forward pass."""
    draw = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(data) // BATCH)
    optimizer = torch.optim.AdamW(twin.parameters(), RATE, BETAS, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    twin.train()
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=draw).tolist()
        for first in range(0, len(data), BATCH):
            step = [data[i] for i in order[first : first + BATCH]]
            tokens = sum(sum(row.is_response) for row in step)
            for part in (step[a : a + size] for a in range(0, len(step), size)):
                twin(**_padded(part), num_items_in_batch=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    twin.eval()


def _padded(part: Sequence[Row]) -> dict[str, Tensor]:
    longest = max(len(row.ids) for row in part)
    tokens = torch.zeros(len(part), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
    for b, row in enumerate(part):
        T = len(row.ids)
        tokens[b, :T], mask[b, :T] = torch.tensor(row.ids), 1
        labels[b, :T] = torch.where(torch.tensor(row.is_response), tokens[b, :T], IGNORED)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}
