"""AdamW, with wide moments and narrow ones: its formula, its types, its resume."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import Killed, dpo, files, kill_before, records, sft, weights
from safetensors.torch import load_file
from tiny_llama import tiny_model
from torch import nn

from dpo import TrainSettings
from dpo.checkpoint import FILES
from dpo.optimizer import MOMENTS, AdamW, make_optimizer
from llama import fingerprint

BETAS = (0.9, 0.95)


def stepped(step_of: Callable[[list[nn.Parameter]], Callable[[], Any]]) -> list[torch.Tensor]:
    """A layer's weights after some steps on random gradients; only its matrix decays."""
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(generator=draw)
    step = step_of(list(layer.parameters()))
    for _ in range(20):
        for weight in layer.parameters():
            weight.grad = torch.randn(weight.shape, generator=draw)
        step()
    return [weight.detach() for weight in layer.parameters()]


def groups_of(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    matrix, bias = weights
    return [
        {"params": [matrix], "weight_decay": 0.1},
        {"params": [bias], "weight_decay": 0.0},
    ]


def our_step(weights: list[nn.Parameter], moments: torch.dtype) -> Callable[[], None]:
    return partial(AdamW(groups_of(weights), BETAS, moments).step, rate=0.01)


def torchs_step(weights: list[nn.Parameter], **how: Any) -> Callable[[], Any]:
    return torch.optim.AdamW(groups_of(weights), lr=0.01, betas=BETAS, **how).step


def test_it_is_torchs() -> None:
    """To the bit by the same kernel; by hand but for rounding."""
    ours = stepped(partial(our_step, moments=torch.float32))
    assert all(map(torch.equal, ours, stepped(partial(torchs_step, fused=True))))
    by_hand = stepped(partial(our_step, moments=torch.float64))  # computes in fp32
    torch.testing.assert_close(by_hand, stepped(partial(torchs_step, fused=False)))
    narrow = stepped(partial(our_step, moments=torch.bfloat16))
    assert not torch.equal(narrow[0], ours[0])
    torch.testing.assert_close(narrow, ours, rtol=0.02, atol=0.002)


def test_a_training_does_not_wait_for_torchs_compiler() -> None:
    """Making one of torch's own optimizers would import it."""
    code = """if True:
        import sys
        from dpo_runs import sft
        from tiny_llama import tiny_model
        sft(tiny_model())
        sys.exit("torch._dynamo" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0


def test_moments_follow_gradients_that_change_little() -> None:
    """v must come up to g², and down again when gradients shrink by 10 % only. With β2 = 0.999 it
    would stick, on its way up already: a change below half a digit is no change.
    """

    def v_after(beta2: float) -> float:
        weight = nn.Parameter(torch.zeros(1))
        groups = [{"params": [weight], "weight_decay": 0.0}]
        optimizer = AdamW(groups, (0.9, beta2), torch.bfloat16)
        for g in [1.0] * 2000 + [0.9] * 2000:
            weight.grad = torch.tensor([g])
            optimizer.step(rate=0.0)
        return optimizer.state[weight]["exp_avg_sq"].item()

    assert v_after(0.95) == pytest.approx(0.81, rel=0.1)
    assert v_after(0.999) < 0.4


def test_only_matrices_decay_whichever_the_moments() -> None:
    for moments in ("float32", "bfloat16"):
        settings = TrainSettings(learning_rate=1.0, weight_decay=0.1, moments=moments)
        groups = make_optimizer(tiny_model(), settings, BETAS).groups
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert {weight.ndim for weight in groups[0]["params"]} == {2}
        assert {weight.ndim for weight in groups[1]["params"]} == {1}


def test_a_training_with_narrow_moments_comes_near_the_wide_one(tmp_path: Path) -> None:
    wide, narrow = tiny_model(), tiny_model()
    sft(wide, tmp_path / "wide", epochs=3)
    sft(narrow, tmp_path / "narrow", epochs=3, moments="bfloat16")
    last = [records(tmp_path / name)[-1]["loss"] for name in ("wide", "narrow")]
    assert last[0] != last[1] and last[0] == pytest.approx(last[1], rel=0.01)
    stored = load_file(tmp_path / "narrow" / FILES[0])
    types = {name.partition(".")[0]: tensor.dtype for name, tensor in stored.items()}
    assert types == {"weight": torch.float32, **dict.fromkeys(MOMENTS, torch.bfloat16)}


@pytest.mark.parametrize("train", [sft, dpo])
def test_a_killed_training_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train
) -> None:
    whole = tiny_model()
    train(whole, tmp_path / "whole", moments="bfloat16")
    with monkeypatch.context() as patch:
        kill_before(patch, 3)
        with pytest.raises(Killed):
            train(tiny_model(), tmp_path / "killed", moments="bfloat16")
    train(model := tiny_model(), tmp_path / "killed", moments="bfloat16")
    assert fingerprint(model) == fingerprint(whole)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_other_moments_are_another_training(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match="another training run: moments was float32, is bfloat16"):
        sft(tiny_model(), tmp_path, moments="bfloat16")


def test_blocks_and_sizes_may_change_on_resume(tmp_path: Path, monkeypatch) -> None:
    whole, resumed = tiny_model(), tiny_model()
    sft(whole)
    with monkeypatch.context() as patch:
        kill_before(patch, 4)
        with pytest.raises(Killed):
            sft(tiny_model(), tmp_path)
    sft(resumed, tmp_path, recompute="selective")
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
