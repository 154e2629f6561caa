"""Small data, small trainings and ways to end them, for the tests of `dpo`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import GROUPED
from torch import Tensor

from dpo import Pair, Row, TrainSettings, descent, response_logps, train_dpo, train_sft
from llama import Llama
from llama.parallel import start


def rows(n: int, seed: int = 0, prompt: int = 5, longest: int = 20) -> list[Row]:
    """Rows of random ids with responses of 1 … longest tokens."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        length = int(torch.randint(1, longest + 1, (), generator=draw))
        ids = torch.randint(3, GROUPED.vocab_size, (prompt + length,), generator=draw).tolist()
        made.append(Row([1, *ids], [False] * (1 + prompt) + [True] * length))
    return made


def alone(model: Llama, row: Row) -> Tensor:
    """A row's log-probability by full logits, with nothing beside it."""
    tokens_BT = torch.tensor([row.ids])
    return response_logps(model(tokens_BT), tokens_BT, torch.tensor([row.is_response]))[0]


def pairs(n: int, seed: int = 0) -> list[Pair]:
    """Pairs that share a prompt of 7 tokens, every other one the answer's first token too."""
    made = []
    for i, (chosen, rejected) in enumerate(zip(rows(n, seed, 6), rows(n, seed + 1, 6))):
        begin = 7 + i % 2
        ids = [*chosen.ids[:begin], *rejected.ids[begin:]]
        made.append(Pair(chosen, Row(ids, rejected.is_response)))
    return made


SETTINGS = TrainSettings(
    learning_rate=3e-3, min_learning_rate=1e-3, batch_size=4, dropout=0.0, micro_tokens=64,
    save_every=2, warmup_steps=2,
)  # fmt: skip


def sft(
    model: Llama,
    directory: Path | None = None,
    data: Any = None,
    processes: int | None = None,
    **changes: Any,
) -> Any:
    settings = replace(SETTINGS, **changes)
    data = rows(24) if data is None else data
    how = {"directory": directory, "processes": processes}
    return train_sft(model, data, settings, seed=0, group=start(), **how)


def dpo(
    model: Llama,
    directory: Path | None = None,
    after_step: Any = None,
    processes: int | None = None,
    **changes: Any,
) -> Any:
    return train_dpo(
        model,
        pairs(20),
        replace(SETTINGS, **changes),
        seed=0,
        group=start(),
        directory=directory,
        replay=rows(7, seed=9),
        after_step=after_step,
        processes=processes,
    )


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def weights(model: Llama) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


class Killed(BaseException):
    """Ends a run in the middle, like a signal."""


def kill_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    usual = descent.Descent._step

    def dying(self: descent.Descent, now: int, *how: Any) -> Any:
        if now == step:
            raise Killed
        return usual(self, now, *how)

    monkeypatch.setattr(descent.Descent, "_step", dying)
