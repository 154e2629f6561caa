"""The training loop: what it descends, that it resumes to the same bytes, and how it fails."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import (
    SETTINGS,
    alone,
    dpo,
    pairs,
    records,
    rows,
    sft,
    weights,
)
from tiny_llama import tiny_model
from torch import Tensor

from dpo import Row, train_dpo
from llama import Llama, fingerprint
from llama.parallel import start


def test_the_sft_loss_is_nats_per_response_token_of_the_step(tmp_path: Path) -> None:
    some = rows(8)
    sft(tiny_model(), tmp_path, some, batch_size=8)
    expected = -sum(alone(tiny_model(), row).item() for row in some)
    expected /= sum(sum(row.is_response) for row in some)
    assert records(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_sft_gradient_is_that_of_one_forward_pass_over_the_step() -> None:
    """Sums and one division: micro-batches of different sizes are not averaged."""
    some = rows(8)
    whole, parts, expected = tiny_model(), tiny_model(), tiny_model()
    sft(whole, None, some, batch_size=8, micro_tokens=10_000)
    sft(parts, None, some, batch_size=8, micro_tokens=1)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=2e-6)
    assert fingerprint(whole) != fingerprint(expected)


def test_prompts_are_not_trained_on() -> None:
    """Two data sets that differ in what prompts predict, and in nothing that responses see."""
    inputs = [Row([1, 5, 9, 7, 8], [False, False, False, False, True])]
    flipped = [Row(inputs[0].ids, [False, True, True, True, False])]  # negative control: inverted
    losses = {}
    for name, data in (("right", inputs), ("inverted", flipped)):
        model = tiny_model()
        before = {at: _logp(model, data[0].ids, at) for at in (1, 2, 3, 4)}
        sft(model, None, data, epochs=30)
        losses[name] = {at: _logp(model, data[0].ids, at) - before[at] for at in before}
    gained = {name: max(gain, key=gain.__getitem__) for name, gain in losses.items()}
    assert gained["right"] == 4 and gained["inverted"] != 4


def _logp(model: Llama, ids: list[int], at: int) -> float:
    mask = [place == at for place in range(len(ids))]
    return alone(model, Row(ids, mask)).item()


def test_sft_learns_to_say_it_and_to_stop() -> None:
    data = [Row([1, 10 + i, 20, 30 + i, 2], [False, False, False, True, True]) for i in range(4)]
    model = tiny_model()
    last = sft(model, None, data, epochs=60, learning_rate=1e-2, min_learning_rate=1e-3)
    assert last["loss"] < 0.05
    for row in data:
        assert model(torch.tensor([row.ids[:3]]))[0, -1].argmax() == row.ids[3]
        assert model(torch.tensor([row.ids[:4]]))[0, -1].argmax() == 2


def test_dpo_prefers_the_chosen(tmp_path: Path) -> None:
    model = tiny_model()
    last = dpo(model, tmp_path, epochs=6, learning_rate=1e-3, min_learning_rate=0)
    first = records(tmp_path)[0]
    assert first["margin"] == 0 and first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert last["accuracy"] == 1 and last["margin"] > 0.5 and last["loss"] < 0.5
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"])


@pytest.mark.parametrize(
    ("loss", "changes", "first"),
    [
        ("cdpo", {"flipped": 0.1}, math.log(2)),
        ("robust", {"flipped": 0.1}, math.log(2)),
        ("ipo", {"beta": 0.5}, 1.0),
        ("hinge", {}, 1.0),
        ("dpo_norm", {"beta": 5.0}, math.log(2)),
        ("simpo", {"beta": 2.0, "gamma": 0.5}, None),
    ],
)
def test_every_loss_can_be_descended(
    tmp_path: Path, loss: str, changes: dict[str, Any], first: float | None
) -> None:
    how = {"learning_rate": 1e-3, "min_learning_rate": 0, "batch_size": 20, "warmup_steps": 0}
    last = dpo(tiny_model(), tmp_path, loss=loss, epochs=6, **how, **changes)
    begin = records(tmp_path)[0]
    if first is None:  # SimPO: from the means per token, with no reference
        model, beta, gamma = tiny_model(), changes["beta"], changes["gamma"]
        rewards = [
            [
                beta * alone(model, row).item() / sum(row.is_response)
                for row in (p.chosen, p.rejected)
            ]
            for p in pairs(20)
        ]
        first = sum(math.log1p(math.exp(r - c + gamma)) for c, r in rewards) / 20
    assert begin["loss"] == begin["dpo_loss"] == pytest.approx(first, rel=1e-5)
    assert last["loss"] < begin["loss"] and last["margin"] > begin["margin"]


def test_the_kl_estimate_is_the_mean_fall_of_the_log_probabilities(tmp_path: Path) -> None:
    dpo(tiny_model(), tmp_path, batch_size=20, epochs=4, beta=0.2, learning_rate=1e-2)
    begin, *later = records(tmp_path)
    assert begin["kl"] == 0
    for record in later:
        fall = begin["chosen_logp"] - record["chosen_logp"]
        fall += begin["rejected_logp"] - record["rejected_logp"]
        assert record["kl"] == pytest.approx(fall / 2, abs=1e-4) and record["kl"] != 0
        rewards = record["chosen_reward"] + record["rejected_reward"]
        assert record["kl"] == pytest.approx(-rewards / 0.2 / 2, abs=1e-4)


def test_extra_losses_are_added_with_their_weights(tmp_path: Path) -> None:
    dpo(tiny_model(), tmp_path, nll_weight=0.3, replay_weight=0.2)
    for record in records(tmp_path):
        parts = record["dpo_loss"] + 0.3 * record["chosen_nll"] + 0.2 * record["replay_nll"]
        assert record["loss"] == pytest.approx(parts, rel=1e-6)
    chosen = [pair.chosen for pair in pairs(20)]
    data = tmp_path / "one"
    train_dpo(tiny_model(), pairs(20), replace(SETTINGS, batch_size=20), seed=0, group=start(),
              directory=data)  # fmt: skip
    nll = -sum(alone(tiny_model(), row).item() for row in chosen)
    nll /= sum(sum(row.is_response) for row in chosen)
    assert records(data)[0]["chosen_nll"] == pytest.approx(nll, rel=1e-6)
    assert "replay_nll" not in records(data)[0]


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path, max_steps=6)
    low, high = 1e-3, 3e-3
    rates = [record["learning_rate"] for record in records(tmp_path)]
    cosine = [low + (high - low) * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx([high / 2, high, *cosine])


def test_the_update_is_adam_of_the_clipped_gradient() -> None:
    """One step, from the formula: at step 1 Adam moves each weight by rate · sign, nearly."""
    model, before = tiny_model(), weights(tiny_model())
    sft(model, max_steps=1, warmup_steps=0, weight_decay=0.1)
    moved = [now - was for now, was in zip(weights(model), before, strict=True)]
    gain = next(i for i, weight in enumerate(before) if weight.ndim == 1)
    matrix = next(i for i, weight in enumerate(before) if weight.shape == (24, 24))
    assert moved[gain].abs().max() <= 3e-3 * 1.01  # no decay on norms
    drift = moved[matrix] + 3e-3 * 0.1 * before[matrix]
    assert drift.abs().max() <= 3e-3 * 1.01
    assert (drift.abs() > 2.9e-3).float().mean() > 0.8


def test_recomputing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, again = tiny_model(), tiny_model()
    sft(usual, dropout=0.3)
    calls = []
    forward = type(again.layers[0]).forward

    def counted(self: torch.nn.Module, *arguments: Any) -> Tensor:
        calls.append(self)
        return forward(self, *arguments)

    monkeypatch.setattr(type(again.layers[0]), "forward", counted)
    sft(again, dropout=0.3)
    once = len(calls)
    sft(again := tiny_model(), dropout=0.3, recompute="full")
    assert len(calls) == 3 * once
    assert fingerprint(again) == fingerprint(usual)
    assert "forward" not in vars(again.layers[0])


def test_clipping_leaves_small_gradients_alone(tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    sft(tiny_model(), big, clip=1e3, max_steps=2)
    sft(tiny_model(), small, clip=1e4, max_steps=2)
    assert records(big) == records(small)
    sft(tiny_model(), tmp_path / "tight", clip=1e-3, max_steps=2)
    assert records(tmp_path / "tight")[0] == records(big)[0]  # the norm is told as it was


def test_dropout_is_drawn_from_the_seed_alone() -> None:
    def trained(seed_outside: int, dropout: float = 0.3) -> str:
        model = tiny_model()
        torch.manual_seed(seed_outside)
        before = torch.get_rng_state()
        sft(model, None, rows(8), dropout=dropout)
        assert torch.equal(torch.get_rng_state(), before)  # the caller's draws are his own
        return fingerprint(model)

    assert trained(1) == trained(2) != trained(1, dropout=0.0)


def test_data_that_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        sft(tiny_model(), data=[])
    with pytest.raises(ValueError, match="nothing to train on"):
        train_dpo(tiny_model(), [], SETTINGS, seed=0, group=start())
    with pytest.raises(ValueError, match="nothing to train on"):
        settings = replace(SETTINGS, replay_weight=0.1)
        train_dpo(tiny_model(), pairs(4), settings, seed=0, group=start())


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"min_learning_rate": 1.0},
        {"epochs": 0}, {"batch_size": 0}, {"warmup_steps": -1}, {"weight_decay": -0.1},
        {"clip": 0}, {"dropout": 1.0}, {"micro_tokens": 0}, {"beta": 0}, {"nll_weight": -1},
        {"replay_weight": -1}, {"max_steps": 0}, {"save_every": 0}, {"loss": "dop"},
        {"flipped": 0.1}, {"flipped": 0.5, "loss": "robust"}, {"flipped": 0, "loss": "cdpo"},
        {"gamma": 0.5, "loss": "ipo"}, {"gamma": -1, "loss": "simpo"},
    ],
)  # fmt: skip
def test_impossible_settings_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SETTINGS, **changes)
