"""The training loop: what it descends, that it resumes to the same bytes, and how it fails."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_dpo_logprobs import alone, pairs, rows
from tiny_llama import tiny_model
from torch import Tensor

from dpo import Row, TrainSettings, descent, forget, train_dpo, train_sft
from dpo.checkpoint import FILE
from dpo.objectives import SFT
from llama import Llama, fingerprint
from llama.parallel import shard, start

SETTINGS = TrainSettings(
    learning_rate=3e-3, min_learning_rate=1e-3, batch_size=4, dropout=0.0, micro_tokens=64,
    save_every=2, warmup_steps=2,
)  # fmt: skip


def sft(model: Llama, directory: Path | None = None, data: Any = None, **changes: Any) -> Any:
    settings = replace(SETTINGS, **changes)
    data = rows(24) if data is None else data
    return train_sft(model, data, settings, seed=0, group=start(), directory=directory)


def dpo(model: Llama, directory: Path | None = None, **changes: Any) -> Any:
    settings = replace(SETTINGS, **changes)
    replay = rows(7, seed=9)
    return train_dpo(
        model, pairs(20), settings, seed=0, group=start(), directory=directory, replay=replay
    )


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "train.jsonl").read_text().splitlines()]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def weights(model: Llama) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


# What is descended


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
    sft(again := tiny_model(), dropout=0.3, recompute=True)
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


# Resume


class Killed(BaseException):
    """Ends a run in the middle, like a signal."""


def kill_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    usual = descent.Descent._step

    def dying(self: descent.Descent, now: int) -> Any:
        if now == step:
            raise Killed
        return usual(self, now)

    monkeypatch.setattr(descent.Descent, "_step", dying)


@pytest.mark.parametrize("train", [sft, dpo])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any
) -> None:
    changes = {"epochs": 2, "dropout": 0.2, "replay_weight": 0.1 if train is dpo else 0.0}
    whole = tiny_model()
    metrics = train(whole, tmp_path / "whole", **changes)
    for killed_at in (1, 2, 5, 7):
        directory = tmp_path / str(killed_at)
        with monkeypatch.context() as patch:
            kill_before(patch, killed_at)
            with pytest.raises(Killed):
                train(tiny_model(), directory, **changes)
        model = tiny_model()
        again = train(model, directory, **changes)
        assert fingerprint(model) == fingerprint(whole)
        assert files(directory) == files(tmp_path / "whole")
        assert again["loss"] == metrics["loss"]
        assert again["tokens"] < metrics["tokens"] or killed_at == 1


def test_a_run_killed_at_any_file_operation_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama import files as disk

    dpo(tiny_model(), tmp_path / "whole")

    def killed_after(operations: int, directory: Path) -> bool:
        left = operations

        def dying(operation: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(disk, "before", dying)
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead tidy nothing up
            try:
                dpo(tiny_model(), directory)
            except Killed:
                return True
        return False

    operations = 0
    while killed_after(operations, tmp_path / str(operations)):
        directory = tmp_path / str(operations)
        dpo(tiny_model(), directory)
        assert files(directory) == files(tmp_path / "whole"), f"killed after {operations}"
        operations += 1
    assert operations > 6


def test_resume_needs_the_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an optimizer that is saved and not loaded shows."""
    sft(tiny_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_before(patch, 4)
        with pytest.raises(Killed):
            sft(tiny_model(), tmp_path / "killed")
    usual = descent.load_training

    def weights_only(directory: Path, model: Llama, optimizer: Any, updates: int) -> None:
        usual(directory, model, optimizer, updates)
        optimizer.state.clear()

    monkeypatch.setattr(descent, "load_training", weights_only)
    sft(tiny_model(), tmp_path / "killed")
    assert files(tmp_path / "killed") != files(tmp_path / "whole")


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first, again = tiny_model(), tiny_model()
    metrics = sft(first, tmp_path)
    before = files(tmp_path)
    assert sft(again, tmp_path)["loss"] == metrics["loss"]
    assert fingerprint(again) == fingerprint(first) and files(tmp_path) == before
    forget(tmp_path, start())
    assert list(files(tmp_path)) == ["train.jsonl"]


def test_without_a_directory_nothing_is_kept(tmp_path: Path) -> None:
    kept, free = tiny_model(), tiny_model()
    sft(kept, tmp_path)
    sft(free)
    assert fingerprint(kept) == fingerprint(free)


def test_another_run_in_the_directory_is_refused(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=r"another training run: learning_rate was 0.003, is 0.1"):
        sft(tiny_model(), tmp_path, learning_rate=0.1)
    with pytest.raises(ValueError, match="another training run: model was"):
        sft(tiny_model(seed=1), tmp_path)
    with pytest.raises(ValueError, match="another training run: data was 24 rows"):
        sft(tiny_model(), tmp_path, rows(24, seed=1))
    with pytest.raises(ValueError, match="another training run: beta was 0.1, is 0.2; data"):
        dpo(tiny_model(), tmp_path, beta=0.2)


def test_memory_and_saving_may_be_set_anew_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tiny_model(), tiny_model()
    sft(whole)
    with monkeypatch.context() as patch:
        kill_before(patch, 4)
        with pytest.raises(Killed):
            sft(tiny_model(), tmp_path)
    sft(resumed, tmp_path, micro_tokens=32, save_every=50)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_a_damaged_frozen_run_is_refused(tmp_path: Path, cut: int) -> None:
    sft(tiny_model(), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=FILE):
        sft(tiny_model(), tmp_path)


def test_lost_records_are_refused(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train.jsonl lost bytes \(0 of"):
        sft(tiny_model(), tmp_path)


def test_a_full_disk_leaves_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_model()
    sft(whole, tmp_path / "whole")
    usual, directory = descent.save_training, tmp_path / "full"

    def third_fails(*arguments: Any) -> None:
        if arguments[3]["progress"]["step"] == 6:
            monkeypatch.setattr("dpo.checkpoint._write_header", _no_room)
        usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(descent, "save_training", third_fails)
        with pytest.raises(OSError, match=r"training.safetensors could not be written.*No space"):
            sft(tiny_model(), directory)
    monkeypatch.undo()
    assert set(files(directory)) == {"train.jsonl", FILE}
    resumed = tiny_model()
    sft(resumed, directory)
    assert fingerprint(resumed) == fingerprint(whole)
    assert files(directory) == files(tmp_path / "whole")


def _no_room(*_: Any) -> None:
    raise OSError(28, "No space left on device")


# Faults in the numbers


def poison(monkeypatch: pytest.MonkeyPatch, steps: Sequence[int], share: float) -> None:
    """Makes the loss of some steps infinite or NaN, gradient and all."""
    usual = SFT.jobs

    def poisoned(self: SFT, step: int, parts: int) -> Any:
        jobs = usual(self, step, parts)
        if step in steps:
            measure = jobs[0].measure
            bad = lambda logp_S: {"loss": measure(logp_S)["loss"] * share}  # noqa: E731
            jobs[0] = replace(jobs[0], measure=bad)
        return jobs

    monkeypatch.setattr(SFT, "jobs", poisoned)


@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_a_step_without_a_finite_loss_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    sft(tiny_model(), tmp_path / "until", save_every=1, max_steps=3, min_learning_rate=3e-3)
    poison(monkeypatch, [3, 4], share)
    metrics = sft(tiny_model(), tmp_path / "bad", save_every=1, max_steps=5, min_learning_rate=3e-3)
    assert metrics["skipped"] == 2 and metrics["steps"] == 5
    bad = records(tmp_path / "bad")
    assert [record["loss"] is None for record in bad] == [False] * 3 + [True] * 2
    assert bad[3]["grad_norm"] is None
    was, now = (_tensors(tmp_path / name / FILE) for name in ("until", "bad"))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)  # weights and moments


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_too_many_bad_steps_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 99), math.nan)
    with pytest.raises(ValueError, match="training step 6: loss is not finite, 5 steps in a row"):
        sft(tiny_model(), tmp_path, epochs=3)
    with pytest.raises(ValueError, match="training step 6: loss is not finite, 5 steps in a row"):
        sft(tiny_model(), tmp_path, epochs=3)  # resume does not start the count anew


def test_bad_steps_apart_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, [0, 1, 2, 3, 5, 6, 7, 8], math.nan)
    assert sft(tiny_model(), epochs=3)["skipped"] == 8


def test_running_out_of_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(descent, "forward_logps", full)
    with pytest.raises(
        ValueError, match=r"step 0 does not fit.*lower micro_tokens \(now 64\) or set"
    ):
        sft(tiny_model())


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
        {"replay_weight": -1}, {"max_steps": 0}, {"save_every": 0},
    ],
)  # fmt: skip
def test_impossible_settings_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(SETTINGS, **changes)


# Ranks


def _on_ranks(root: Path, kill_after: int | None) -> None:
    group = start(timeout_s=200)
    model = shard(tiny_model(), group)
    settings = replace(SETTINGS, epochs=1, max_steps=kill_after)
    if kill_after is not None:  # the same run, as far as it came: its schedule must not differ
        settings = replace(settings, max_steps=None)
        usual = descent.Descent._step

        def dying(self: descent.Descent, step: int) -> Any:
            if step == kill_after:
                raise Killed
            return usual(self, step)

        descent.Descent._step = dying  # type: ignore[method-assign]
    try:
        train_sft(model, rows(24), settings, seed=0, group=group, directory=root / "sft")
        extra = replace(settings, nll_weight=0.1, replay_weight=0.2)
        train_dpo(
            model, pairs(9), extra, seed=0, group=group, directory=root / "dpo",
            replay=rows(7, seed=9),
        )  # fmt: skip
    except Killed:
        pass
    group.stop()


def close(ours: Path, theirs: Path) -> None:
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert mine.keys() == other.keys() and mine["tokens"] == other["tokens"]
        for name, value in mine.items():
            assert value == pytest.approx(other[name], abs=1e-5, rel=2e-5), name


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    """SFT, then DPO with a batch that leaves one rank without pairs; and a frozen run of one rank
    is taken up by two."""
    _on_ranks(tmp_path / "one", None)
    assert run_ranks(_on_ranks, 2, tmp_path / "two", None, limit_s=250) == [0, 0]
    for part in ("sft", "dpo"):
        assert len(records(tmp_path / "one" / part)) >= 3
        close(tmp_path / "one" / part, tmp_path / "two" / part)
    usual = descent.Descent._step
    _on_ranks(tmp_path / "moved", 3)
    descent.Descent._step = usual  # type: ignore[method-assign]
    assert run_ranks(_on_ranks, 2, tmp_path / "moved", None, limit_s=250) == [0, 0]
    close(tmp_path / "one" / "sft", tmp_path / "moved" / "sft")
