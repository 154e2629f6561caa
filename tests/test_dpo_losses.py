"""The preference losses: their laws, and numbers worked by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpo import TrainSettings
from dpo.losses import (
    cdpo_loss,
    dpo_loss,
    dpo_norm_loss,
    hinge_loss,
    ipo_loss,
    kl_estimate,
    robust_dpo_loss,
    sft_loss,
    simpo_loss,
)
from dpo.objectives import preference_loss
from dpo.settings import LOSSES

ALL = (dpo_loss, cdpo_loss, robust_dpo_loss, ipo_loss, hinge_loss)
PLAIN = TrainSettings(learning_rate=1.0)
SETTINGS = {
    name: replace(PLAIN, loss=name, beta=0.3, flipped=0.2 * (name in ("cdpo", "robust")))
    for name in LOSSES
} | {"simpo": replace(PLAIN, loss="simpo", beta=2.0, gamma=0.7)}
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


def lengths(n: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens of the chosen and of the rejected responses, 1 to 30."""
    draw = torch.Generator().manual_seed(seed)
    chosen, rejected = torch.randint(1, 31, (2, n), generator=draw).double()
    return chosen, rejected


def by_name(name: str, inputs: list[Tensor], tokens: tuple[Tensor, Tensor]) -> Any:
    """The loss of a setting's name."""
    return preference_loss(SETTINGS[name], (inputs[0], inputs[1]), (inputs[2], inputs[3]), tokens)


def test_the_ones_by_length_worked_by_hand() -> None:
    # means: policy −10/5 = −2 and −14/2 = −7, reference −11/5 = −2.2 and −12/2 = −6
    tokens = wide(5), wide(2)
    inputs = wide(-10), wide(-14), wide(-11), wide(-12)
    losses, chosen, rejected = dpo_norm_loss(*inputs, *tokens, 0.5)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.1, -0.5))
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-0.6)))
    losses, chosen, rejected = simpo_loss(*inputs[:2], *tokens, 0.5, 0.3)
    assert (chosen.item(), rejected.item()) == (-1.0, -3.5)
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-(2.5 - 0.3))))


def test_normalised_by_one_token_is_plain_dpo() -> None:
    inputs, one = logps(), torch.ones(7, dtype=torch.float64)
    for ours, plain in zip(
        dpo_norm_loss(*inputs, one, one, 0.3), dpo_loss(*inputs, 0.3), strict=True
    ):
        assert torch.equal(ours, plain)


def test_saying_everything_twice_changes_nothing_by_length() -> None:
    """Twice the log-probability over twice the tokens; plain DPO sees twice the margin."""
    inputs, tokens = logps(), lengths()
    twice = [2 * x for x in inputs]
    doubled = 2 * tokens[0], 2 * tokens[1]
    for name in ("dpo_norm", "simpo"):
        now, then = by_name(name, inputs, tokens)[0], by_name(name, twice, doubled)[0]
        torch.testing.assert_close(now, then, rtol=1e-12, atol=0)
    assert not torch.allclose(dpo_loss(*inputs)[0], dpo_loss(*twice)[0])


def test_simpo_knows_no_reference_and_moves_the_threshold() -> None:
    policy, tokens = logps()[:2], lengths()
    free = by_name("simpo", [*policy, wide(*[-3.0] * 7), wide(*[-9.0] * 7)], tokens)[0]
    assert torch.equal(free, by_name("simpo", logps(), tokens)[0])
    chosen, rejected = wide(-2.0), wide(-3.0)  # ahead by 1 = gamma: as likely wrong as right
    loss = simpo_loss(chosen, rejected, wide(1), wide(1), 1.0, 1.0)[0]
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)


AT_ZERO = {"dpo": math.log(2), "cdpo": math.log(2), "robust": math.log(2), "hinge": 1.0,
           "ipo": (1 / 0.6) ** 2, "dpo_norm": math.log(2)}  # fmt: skip


@pytest.mark.parametrize("name", AT_ZERO)
def test_the_loss_where_policy_is_reference(name: str) -> None:
    chosen, rejected, *_ = logps()
    losses = by_name(name, [chosen, rejected, chosen, rejected], lengths())[0]
    assert losses.tolist() == pytest.approx([AT_ZERO[name]] * 7, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_at_first_each_pushes_the_chosen_up_and_the_rejected_down(name: str) -> None:
    chosen, rejected, *_ = logps()
    inputs = [chosen.requires_grad_(), rejected.requires_grad_()]
    same = [chosen.detach(), rejected.detach()]
    by_name(name, [*inputs, *same], lengths())[0].sum().backward()
    assert chosen.grad is not None and (chosen.grad < 0).all()
    assert rejected.grad is not None and (rejected.grad > 0).all()


FALLING_FOR_EVER = ("dpo", "robust", "hinge", "dpo_norm", "simpo")


@pytest.mark.parametrize("name", LOSSES)
def test_a_larger_gap_costs_less_and_where_that_ends(name: str) -> None:
    """IPO wants the gap 1/(2β), cDPO a margin of the labels' log odds; beyond, both lead back."""
    gap = torch.linspace(-40, 40, 161, dtype=torch.float64)
    zero, one = torch.zeros_like(gap), torch.ones_like(gap)
    losses = by_name(name, [gap, zero, zero, zero], (one, one))[0]
    falls = losses.diff() <= 0
    if name in FALLING_FOR_EVER:
        assert falls.all()
    else:
        best = {"ipo": 1 / 0.6, "cdpo": math.log(0.8 / 0.2) / 0.3}[name]
        assert falls[gap[1:] <= best].all() and not falls[gap[:-1] >= best].any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences_by_name(name: str) -> None:
    inputs, tokens = [x.requires_grad_() for x in logps()], lengths()
    used = inputs[:2] if name == "simpo" else inputs
    assert torch.autograd.gradcheck(
        lambda *x: by_name(name, [*x, *inputs[len(x) :]], tokens)[0], used
    )


def test_each_name_is_its_function() -> None:
    inputs, (chosen, rejected) = logps(), lengths()
    expected = {
        "dpo": dpo_loss(*inputs, 0.3),
        "cdpo": cdpo_loss(*inputs, 0.3, 0.2),
        "robust": robust_dpo_loss(*inputs, 0.3, 0.2),
        "ipo": ipo_loss(*inputs, 0.3),
        "hinge": hinge_loss(*inputs, 0.3),
        "dpo_norm": dpo_norm_loss(*inputs, chosen, rejected, 0.3),
        "simpo": simpo_loss(*inputs[:2], chosen, rejected, 2.0, 0.7),
    }
    assert tuple(expected) == LOSSES
    losses = {name: by_name(name, inputs, (chosen, rejected))[0] for name in LOSSES}
    for name, values in expected.items():
        assert torch.equal(losses[name], values[0])
    values = [loss.sum().item() for loss in losses.values()]
    assert len(set(values)) == len(LOSSES)  # no two names are the same loss


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.integers(0, 5))
def test_the_kl_estimate_is_right_on_average(scores: list[float], turn: int) -> None:
    """All responses, each as often as the reference says it: then the mean is the KL divergence."""
    reference = torch.log_softmax(wide(*scores), dim=0)
    policy = reference.roll(turn % len(scores))
    mean = (reference.exp() * kl_estimate(policy, reference)).sum()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=reference),
        torch.distributions.Categorical(logits=policy),
    )
    assert mean.item() == pytest.approx(kl.item(), abs=1e-9)


def test_the_kl_estimate_is_the_rewards_over_beta() -> None:
    """So it rises exactly where both log-probabilities fall, whatever the margin does."""
    inputs = logps()
    _, chosen, rejected = dpo_loss(*inputs, 0.2)
    estimate = kl_estimate(inputs[0], inputs[2]) + kl_estimate(inputs[1], inputs[3])
    torch.testing.assert_close(estimate, -(chosen + rejected) / 0.2)
