"""The preference losses: their laws, numbers worked by hand, and parity with TRL."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpo.losses import cdpo_loss, dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss, sft_loss

ALL = (dpo_loss, cdpo_loss, robust_dpo_loss, ipo_loss, hinge_loss)
LOGP = st.floats(-300, 0, allow_nan=False)
BETA = st.floats(0.01, 2.0)


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logps(n: int = 7, seed: int = 0) -> list[Tensor]:
    """Policy chosen, policy rejected, reference chosen, reference rejected."""
    draw = torch.Generator().manual_seed(seed)
    return [-20 * torch.rand(n, generator=draw, dtype=torch.float64) for _ in range(4)]


def at_margin(loss: Any, margin: Tensor, beta: float = 0.1, **more: float) -> Tensor:
    """A loss where beta · (policy gap − reference gap) is `margin`."""
    zero = torch.zeros_like(margin)
    return loss(margin / beta, zero, zero, zero, beta, **more)[0]


def test_worked_by_hand() -> None:
    # gaps: policy −10 − (−14) = 4, reference −11 − (−12) = 1; margin 0.5 · 3 = 1.5
    losses, chosen, rejected = dpo_loss(wide(-10), wide(-14), wide(-11), wide(-12), 0.5)
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-12)
    assert losses.item() == pytest.approx(0.201413, abs=1e-6)
    assert (chosen.item(), rejected.item()) == (0.5, -1.0)
    margin = wide(1.5)
    assert at_margin(hinge_loss, margin).item() == 0.0
    assert at_margin(hinge_loss, wide(-0.5)).item() == pytest.approx(1.5)
    assert at_margin(ipo_loss, margin, 0.5).item() == pytest.approx((3 - 1) ** 2)
    soft, hard = math.log(1 + math.exp(1.5)), math.log(1 + math.exp(-1.5))
    assert at_margin(cdpo_loss, margin, flipped=0.2).item() == pytest.approx(
        0.8 * hard + 0.2 * soft
    )
    expected = (0.8 * hard - 0.2 * soft) / 0.6
    assert at_margin(robust_dpo_loss, margin, flipped=0.2).item() == pytest.approx(expected)
    assert sft_loss(wide(-3, -4)).tolist() == [3, 4]


@given(chosen=LOGP, rejected=LOGP, beta=BETA)
def test_where_policy_is_reference_the_loss_is_ln_2(
    chosen: float, rejected: float, beta: float
) -> None:
    same = wide(chosen), wide(rejected), wide(chosen), wide(rejected)
    losses, chosen_rewards, rejected_rewards = dpo_loss(*same, beta)
    assert losses.item() == pytest.approx(math.log(2), abs=1e-15)
    assert chosen_rewards.item() == rejected_rewards.item() == 0
    for other in (cdpo_loss, robust_dpo_loss):
        assert other(*same, beta)[0].item() == pytest.approx(math.log(2), abs=1e-12)


@given(margin=st.floats(-200, 200))
def test_swapping_chosen_and_rejected_adds_the_margin(margin: float) -> None:
    m = wide(margin)
    difference = at_margin(dpo_loss, m) - at_margin(dpo_loss, -m)
    assert difference.item() == pytest.approx(-margin, rel=1e-12, abs=1e-12)


def test_the_gradient_is_beta_times_the_probability_of_being_wrong() -> None:
    policy_chosen, policy_rejected, *reference = logps()
    policy_chosen.requires_grad_()
    policy_rejected.requires_grad_()
    beta = 0.3
    losses, chosen, rejected = dpo_loss(policy_chosen, policy_rejected, *reference, beta)
    losses.sum().backward()
    wrong = torch.sigmoid(-(chosen - rejected))
    torch.testing.assert_close(policy_chosen.grad, -beta * wrong, rtol=1e-12, atol=0)
    torch.testing.assert_close(policy_rejected.grad, beta * wrong, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", ALL)
def test_gradients_match_finite_differences(loss: Any) -> None:
    inputs = [x.requires_grad_() for x in logps()]
    assert torch.autograd.gradcheck(lambda *x: loss(*x)[0], inputs)


@pytest.mark.parametrize("loss", ALL)
def test_rewards_are_the_same_for_all_and_carry_no_gradient(loss: Any) -> None:
    inputs = [x.requires_grad_() for x in logps()]
    _, chosen, rejected = loss(*inputs, 0.2)
    assert not chosen.requires_grad and not rejected.requires_grad
    torch.testing.assert_close(chosen, 0.2 * (inputs[0] - inputs[2]).detach())
    torch.testing.assert_close(rejected, 0.2 * (inputs[1] - inputs[3]).detach())


@pytest.mark.parametrize("loss", ALL)
def test_only_gaps_matter(loss: Any) -> None:
    """What policy and reference both say of a response cancels."""
    inputs = logps()
    shifted = [x + shift for x, shift in zip(inputs, (5, 5, 5, 5), strict=True)]
    torch.testing.assert_close(loss(*inputs)[0], loss(*shifted)[0])
    prompt = [x + shift for x, shift in zip(inputs, (3, 3, 0, 0), strict=True)]
    torch.testing.assert_close(loss(*inputs)[0], loss(*prompt)[0])


@given(margin=st.floats(-50, 50), flipped=st.floats(0, 0.45))
def test_robust_is_unbiased_under_flipped_labels(margin: float, flipped: float) -> None:
    m = wide(margin)
    right = at_margin(robust_dpo_loss, m, flipped=flipped)
    wrong = at_margin(robust_dpo_loss, -m, flipped=flipped)
    mean = (1 - flipped) * right + flipped * wrong
    torch.testing.assert_close(mean, at_margin(dpo_loss, m), rtol=1e-9, atol=1e-9)


@given(flipped=st.floats(0.01, 0.49))
def test_conservative_settles_at_the_odds(flipped: float) -> None:
    margin = wide(math.log((1 - flipped) / flipped)).requires_grad_()
    at_margin(cdpo_loss, margin, flipped=flipped).sum().backward()
    assert margin.grad is not None and abs(margin.grad.item()) < 1e-12


def test_without_flips_both_are_plain_dpo() -> None:
    inputs = logps()
    for loss in (cdpo_loss, robust_dpo_loss):
        torch.testing.assert_close(loss(*inputs, 0.1, 0.0)[0], dpo_loss(*inputs, 0.1)[0])


def test_far_margins_stay_finite() -> None:
    for dtype in (torch.float32, torch.float64):
        margin = torch.tensor([-1e4, 1e4], dtype=dtype)
        assert at_margin(dpo_loss, margin).tolist() == pytest.approx([1e4, 0.0], rel=1e-6)


class Trl:
    """TRL's own loss, called on a trainer without a model, given log-probabilities."""

    def __init__(self, loss_type: str, beta: float, flipped: float = 0.0) -> None:
        pytest.importorskip("trl")
        self.trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(
                device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
            ),
            args=SimpleNamespace(),
            beta=beta,
            label_smoothing=flipped,
            loss_types=[loss_type],
            loss_weights=[1.0],
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            use_weighting=False,
            aux_loss_enabled=False,
            _metrics=_Anything(),
            _total_train_tokens=0,
            _tp_size=1,
        )

    def __call__(self, chosen: Tensor, rejected: Tensor, *reference: Tensor) -> Tensor:
        """The mean loss over pairs of responses of one token."""
        from trl.trainer.dpo_trainer import DPOTrainer

        logp = torch.cat([chosen, rejected])[:, None]
        outputs = SimpleNamespace(
            log_probs=logp, entropy=logp, mean_logits=logp, is_top1=torch.ones_like(logp).bool()
        )
        ones = torch.ones(len(logp), 2, dtype=torch.long)
        inputs = {
            "input_ids": ones,
            "attention_mask": ones,
            "completion_mask": torch.tensor([[0, 1]]).expand(len(logp), 2),
            "ref_chosen_logps": reference[0],
            "ref_rejected_logps": reference[1],
        }
        return DPOTrainer._compute_loss(self.trainer, lambda **_: outputs, inputs, False)


class _Anything(dict[str, Any]):
    """A dictionary of dictionaries of lists."""

    def __missing__(self, key: str) -> Any:
        from collections import defaultdict

        self[key] = defaultdict(list)
        return self[key]


@pytest.mark.parametrize(
    ("ours", "theirs", "flipped"),
    [
        (dpo_loss, "sigmoid", None),
        (hinge_loss, "hinge", None),
        (ipo_loss, "ipo", None),
        (robust_dpo_loss, "robust", 0.2),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_parity_with_trl(ours: Any, theirs: str, flipped: float | None) -> None:
    more = () if flipped is None else (flipped,)
    inputs = logps(n=16)
    expected = Trl(theirs, 0.3, flipped or 0.0)(*inputs)
    torch.testing.assert_close(ours(*inputs, 0.3, *more)[0].mean(), expected, rtol=1e-13, atol=0)
    swapped = [inputs[i] for i in (1, 0, 2, 3)]  # negative control: TRL must see the difference
    assert not torch.isclose(ours(*swapped, 0.3, *more)[0].mean(), expected)


@pytest.mark.filterwarnings("ignore")
def test_parity_of_conservative_with_trl() -> None:
    """TRL smooths labels in its sorting loss alone; a single pair is sorted already."""
    trl = Trl("aot", 0.3, 0.2)
    for pair in range(4):
        inputs = [x[pair : pair + 1] for x in logps()]
        expected = trl(*inputs)
        torch.testing.assert_close(
            cdpo_loss(*inputs, 0.3, 0.2)[0].mean(), expected, rtol=1e-13, atol=0
        )
