"""Losses over summed response log-probabilities: tensors in, one loss per row out.

Knows no model, no batch, no rank and no average: whoever sums also counts, and divides once. What
each is good for, and how the extra terms of a step are added: docs/dpo.md.
"""

# B pairs (or rows)

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Preference = tuple[Tensor, Tensor, Tensor]


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Preference:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    Takes the summed log-probabilities [B], in nats, of the chosen and the rejected responses under
    the policy and under the frozen reference. Returns (losses, chosen_rewards, rejected_rewards),
    each [B]; a reward is the implicit one of eq. 5, beta · log(π / π_ref), without gradient.
    """
    margin_B, chosen_B, rejected_B = _margin(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    return -F.logsigmoid(margin_B), chosen_B, rejected_B


def cdpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    flipped: float = 0.1,
) -> Preference:
    """Conservative DPO: cross-entropy where a share `flipped` of the labels may be wrong.

    Its optimum is finite: the margin settles at log((1 - flipped) / flipped). Mitchell 2023, "A
    note on DPO with noisy preferences".
    """
    margin_B, chosen_B, rejected_B = _margin(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    agree_B, disagree_B = -F.logsigmoid(margin_B), -F.logsigmoid(-margin_B)
    return (1 - flipped) * agree_B + flipped * disagree_B, chosen_B, rejected_B


def robust_dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    flipped: float = 0.1,
) -> Preference:
    """Robust DPO: its mean over labels flipped with probability `flipped` < 1/2 is the clean loss.

    A single loss may be negative. Chowdhury et al. 2024, arXiv 2403.00409.
    """
    margin_B, chosen_B, rejected_B = _margin(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    agree_B, disagree_B = -F.logsigmoid(margin_B), -F.logsigmoid(-margin_B)
    unbiased_B = ((1 - flipped) * agree_B - flipped * disagree_B) / (1 - 2 * flipped)
    return unbiased_B, chosen_B, rejected_B


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Preference:
    """Identity preference optimization: (h - 1/(2β))², h the margin without β.

    For the length-normalised form pass means per token. Azar et al. 2023, arXiv 2310.12036, eq. 17.
    """
    margin_B, chosen_B, rejected_B = _margin(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    return (margin_B / beta - 1 / (2 * beta)).square(), chosen_B, rejected_B


def hinge_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Preference:
    """max(0, 1 - margin): SLiC's hinge on DPO's margin.

    Zhao et al. 2023, arXiv 2305.10425; on this margin Liu et al. 2023, arXiv 2309.06657.
    """
    margin_B, chosen_B, rejected_B = _margin(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    return (1 - margin_B).relu(), chosen_B, rejected_B


def dpo_norm_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float = 5.0,
) -> Preference:
    """Length-normalised DPO: DPO on means per token, so that length alone earns no margin.

    chosen_tokens, rejected_tokens: how many tokens each sum is over, [B]. `beta` weighs nats per
    token, so it is larger than DPO's. Lambert et al. 2024, "Tülu 3", arXiv 2411.15124.
    """
    return dpo_loss(
        policy_chosen / chosen_tokens,
        policy_rejected / rejected_tokens,
        reference_chosen / chosen_tokens,
        reference_rejected / rejected_tokens,
        beta,
    )


def simpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Preference:
    """SimPO: -log σ(β · gap of the means per token - γ), without any reference.

    A reward is beta · mean log-probability; `gamma` is by how much the chosen one's must be ahead.
    Meng et al. 2024, arXiv 2405.14734, eq. 6.
    """
    chosen_B = beta * policy_chosen / chosen_tokens
    rejected_B = beta * policy_rejected / rejected_tokens
    losses_B = -F.logsigmoid(chosen_B - rejected_B - gamma)
    return losses_B, chosen_B.detach(), rejected_B.detach()


def sft_loss(response_logps: Tensor) -> Tensor:
    """Negative log-likelihood [B] of each response in nats, *summed* over its tokens.

    The loss per token is the sum over all rows divided, once, by the number of their tokens. Of the
    chosen responses it is the NLL term that RPO adds (Pang et al. 2024, arXiv 2404.19733, eq. 1:
    there each response is divided by its own length).
    """
    return -response_logps


def kl_estimate(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """log π_ref - log π [B] of responses that the reference wrote, in nats, without gradient.

    Its mean over such responses is KL(π_ref ‖ π), in expectation; one alone may be negative
    (Schulman 2020, "Approximating KL divergence", k1).
    """
    return (reference_logps - policy_logps).detach()


def _margin(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Preference:
    policy_gap_B = policy_chosen - policy_rejected
    reference_gap_B = reference_chosen - reference_rejected
    margin_B = beta * (policy_gap_B - reference_gap_B)  # DPO, eq. 7
    chosen_B = beta * (policy_chosen - reference_chosen).detach()
    rejected_B = beta * (policy_rejected - reference_rejected).detach()
    return margin_B, chosen_B, rejected_B
