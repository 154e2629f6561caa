"""Training adapters: what changes, what does not, resume, ranks."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import SETTINGS, Killed, dpo, files, kill_before, pairs, records, rows, sft
from ranks import run_ranks
from tiny_llama import GROUPED, tiny_model, tiny_tokenizer

from dpo import train_dpo, train_sft
from dpo.checkpoint import FILES
from dpo.optimizer import make_optimizer
from llama import Llama, LlamaConfig, fingerprint, load, load_sharded, save
from llama.lora import Lora, attach, plain_state
from llama.parallel import Group, Layout, shard, start

LORA = {"lora_rank": 3, "lora_alpha": 6.0}
ALONE = Group(0, 1, torch.device("cpu"), 1.0)


def adapted(config: LlamaConfig = GROUPED) -> Llama:
    model = tiny_model(config)
    attach(model, Lora(3, 6.0))
    return model


@pytest.mark.parametrize("train", [sft, dpo])
def test_the_loss_falls_and_only_adapted_matrices_change(tmp_path: Path, train: Any) -> None:
    model, before = adapted(), plain_state(tiny_model())
    seen = []
    rate = {"learning_rate": 1e-2, "epochs": 6, "save_every": 100}
    if train is dpo:

        def look(step: int, steps: int) -> None:
            assert all(torch.equal(w, before[n]) for n, w in plain_state(model).items())
            seen.append(step)

        train(model, tmp_path, look, **LORA, **rate)
        assert seen
    else:
        train(model, tmp_path, **LORA, **rate)
    first, *_, last = records(tmp_path)
    assert last["loss"] < 0.95 * first["loss"]
    after = plain_state(model)
    changed = {name.split(".")[-2] for name in before if not torch.equal(after[name], before[name])}
    assert changed == {"wq", "wk", "wv", "wo", "w1", "w2", "w3"}


def test_before_the_first_update_policy_and_reference_are_one(tmp_path: Path) -> None:
    dpo(adapted(), tmp_path / "few", **LORA)
    begin = records(tmp_path / "few")[0]
    assert begin["margin"] == begin["kl"] == 0
    assert begin["loss"] == pytest.approx(math.log(2), abs=1e-7)
    dpo(tiny_model(), tmp_path / "all")
    reference = "reference.safetensors"
    assert files(tmp_path / "few")[reference] == files(tmp_path / "all")[reference]


def test_recomputing_changes_nothing_and_a_second_training_goes_on_from_the_first() -> None:
    trained = []
    for how in ({}, {"recompute": "full"}, {"recompute": "selective"}):
        model = adapted()
        sft(model, **LORA, dropout=0.3, **how)
        first, plain = fingerprint(model), tiny_model()
        plain.load_state_dict(plain_state(model))
        attach(plain, Lora(3, 6.0))
        for second in (model, plain):
            dpo(second, **LORA)
        assert fingerprint(model) == fingerprint(plain)
        trained.append((first, fingerprint(model)))
    assert len(set(trained)) == 1
    assert len({fingerprint(tiny_model()), *trained[0]}) == 3


@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_compiled_blocks_train_the_same_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, usual = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: usual(forward, backend=counter))
    one_block = replace(GROUPED, n_layers=1)  # another would be traced for half a minute
    for compiled in (False, True):
        sft(adapted(one_block), tmp_path / str(compiled), **LORA, max_steps=2, compile=compiled)
    ours, theirs = (records(tmp_path / str(compiled)) for compiled in (True, False))
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-5)
    assert counter.frame_count >= 1


@pytest.mark.parametrize("train", [sft, dpo])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_killed_run_goes_on_to_the_same_bytes_without_the_frozen_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any, moments: str
) -> None:
    changes = LORA | {"epochs": 2, "dropout": 0.2, "moments": moments}
    whole = adapted()
    train(whole, tmp_path / "whole", **changes)
    learning = sum(w.numel() for w in whole.parameters() if w.requires_grad)
    each = 4 + 2 * {"float32": 4, "bfloat16": 2}[moments]
    sizes = [(tmp_path / "whole" / name).stat().st_size for name in FILES]
    assert max(sizes) < each * learning + 16_000
    for killed_at in (1, 5):
        directory = tmp_path / str(killed_at)
        with monkeypatch.context() as patch:
            kill_before(patch, killed_at)
            with pytest.raises(Killed):
                train(adapted(), directory, **changes)
        model = adapted()
        train(model, directory, **changes)
        assert fingerprint(model) == fingerprint(whole)
        assert files(directory) == files(tmp_path / "whole")


def test_another_base_or_other_adapters_are_refused(tmp_path: Path) -> None:
    sft(adapted(), tmp_path, **LORA)
    other = tiny_model(seed=1)
    attach(other, Lora(3, 6.0))
    with pytest.raises(ValueError, match="another training run: model was"):
        sft(other, tmp_path, **LORA)
    for given, wanted in ((tiny_model(), LORA), (adapted(), {}), (adapted(), {"lora_rank": 2})):
        for train in (sft, dpo):
            with pytest.raises(ValueError, match="the settings want .*lora=settings.lora"):
                train(given, **wanted)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lora_rank": -1}, "lora_rank must be at least 1, found -1"),
        ({"lora_rank": 3, "lora_targets": ("up",)}, "lora_targets must be some of wq"),
        ({"lora_alpha": 8.0}, "lora_alpha means nothing with lora_rank 0"),
        ({"lora_targets": ("wq",)}, "lora_targets means nothing with lora_rank 0"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **changes)
    assert SETTINGS.lora is None


def train_both(root: Path, group: Group) -> None:
    """SFT, then DPO: on one model, so that what was learnt first must be in the weights."""
    settings = replace(SETTINGS, **LORA)
    model = shard(adapted(), group)
    train_sft(model, rows(24), settings, seed=0, group=group, directory=root / "sft")
    train_dpo(model, pairs(9), settings, seed=0, group=group, directory=root / "dpo")
    save(model, tiny_tokenizer(), root / "model")


def on_ranks(root: Path) -> None:
    group = start(timeout_s=100)
    layouts = {"whole": Layout(), "hybrid": Layout("machine"), "offload": Layout("all", True)}
    for name, layout in layouts.items():
        train_both(root / name, replace(group, layout=layout))
    group.stop()


def in_bf16(path: Path) -> None:
    """Frozen weights in bf16 and adapters in fp32, in one FSDP group."""
    group = start(timeout_s=100)
    model, tokenizer = load_sharded(path / "m", group, torch.bfloat16, lora=Lora(3, 6.0))
    optimizer = make_optimizer(model, replace(SETTINGS, **LORA), (0.9, 0.95))
    learning = optimizer.weights
    kinds = {w.dtype for w in model.parameters()} - {w.dtype for w in learning}
    assert {w.dtype for w in learning} == {torch.float32} and kinds == {torch.bfloat16}
    settings = replace(SETTINGS, **LORA)
    directory = path / str(group.world_size)
    train_sft(model, rows(24), settings, seed=0, group=group, directory=directory)
    save(model, tokenizer, directory / "trained")
    group.stop()


def test_two_ranks_train_adapters_as_one_does_however_they_are_cut(tmp_path: Path) -> None:
    """One rank of two has two of A's three rows, the other one."""
    train_both(tmp_path / "one", ALONE)
    assert run_ranks(on_ranks, 2, tmp_path, limit_s=200, machines=2) == [0, 0]
    theirs = plain_state(load(tmp_path / "one" / "model")[0])
    for name in ("whole", "hybrid", "offload"):
        for part in ("sft", "dpo"):
            ours = [r["loss"] for r in records(tmp_path / name / part)]
            one = [r["loss"] for r in records(tmp_path / "one" / part)]
            assert len(ours) >= 3 and ours == pytest.approx(one, abs=1e-5)
        ours = plain_state(load(tmp_path / name / "model")[0])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_frozen_weights_in_bf16_lie_beside_adapters_in_fp32_on_one_rank_and_two(
    tmp_path: Path,
) -> None:
    save(tiny_model(), tiny_tokenizer(), tmp_path / "m")
    assert run_ranks(in_bf16, 2, tmp_path, limit_s=100) == [0, 0]
    in_bf16(tmp_path)
    one, two = ([r["loss"] for r in records(tmp_path / n)] for n in ("1", "2"))
    assert two == pytest.approx(one, rel=0.01)
    for n in ("1", "2"):
        trained, _ = load(tmp_path / n / "trained")
        assert fingerprint(trained) != fingerprint(load(tmp_path / "m")[0])


def test_the_face_trains_adapters(tmp_path: Path) -> None:
    save(tiny_model(), tiny_tokenizer(), tmp_path / "m")
    row = {"id": "1", "prompt": "Count", "response": "3 words."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    words = ["--sft", tmp_path / "rows.jsonl", "--out", tmp_path / "out", "--epochs", 3]
    words += ["--bfloat16", "--lora-rank", 2, "--lora-targets", "wq", "w2", "--dropout", 0]
    command = [sys.executable, "-W", "error", "-m", "dpo", tmp_path / "m", *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "adapters of rank 2 learn" in done.stdout
    trained, _ = load(tmp_path / "out")
    assert fingerprint(trained) != fingerprint(load(tmp_path / "m", torch.bfloat16)[0])
