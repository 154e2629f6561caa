"""What the steps of a run compute: which lines, and what becomes of their log-probabilities.

A step is a list of jobs, one forward pass each. What a job measures are *shares*: already divided
by the count over the whole step, which follows from the masks alone, so that shares only ever add
up, over jobs and over ranks. Knows no optimizer, no file and no rank.
"""

# B pairs, S responses

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dpo.batches import PADDED, Dealer, Layout
from dpo.lines import Line, MicroBatch, Pair, Row
from dpo.losses import (
    Preference,
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
from dpo.settings import FLIPPING, TrainSettings

Shares = dict[str, Tensor]
Both = tuple[Tensor, Tensor]  # of the chosen responses, and of the rejected


@dataclass(frozen=True)
class Job:
    """One forward pass: its lines, how they lie in it, and what their responses'
    log-probabilities [S] say.

    Of the shares that `measure` returns, `loss` is the one to descend.
    """

    lines: list[Line]
    lay: Callable[[Sequence[Line]], MicroBatch]
    measure: Callable[[Tensor], Shares]


class Objective(Protocol):
    """What the training loop asks of SFT and DPO alike."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every item comes once."""

    def jobs(self, step: int, parts: int) -> list[Job]:
        """The jobs of a step, equally many for each of `parts` processes, of all ranks."""


class SFT:
    """Negative log-likelihood per response token; shares: `loss`, in nats."""

    def __init__(self, rows: Dealer[Row], settings: TrainSettings, layout: Layout = PADDED) -> None:
        self.rows, self.micro_tokens, self.layout = rows, settings.micro_tokens, layout
        self.steps_per_epoch = rows.steps_per_epoch

    def jobs(self, step: int, parts: int) -> list[Job]:
        """The jobs of a step."""
        lines = self.rows.step(step)
        measure = partial(self._measure, tokens=sum(len(line.target_N) for line in lines))
        micros = self.layout.cut(lines, self.micro_tokens, parts)
        return [Job(micro, self.layout.lay, measure) for micro in micros]

    def _measure(self, logp_S: Tensor, tokens: int) -> Shares:
        return {"loss": sft_loss(logp_S).sum() / tokens}


class DPO:
    """The preference loss, mean over pairs, + nll_weight · loss per token of the chosen responses
    + replay_weight · loss per token of replayed rows, as many in a step as pairs.

    Shares: `loss`, the sum; means over pairs: `dpo_loss` (whichever was chosen), `accuracy, margin,
    chosen_reward, rejected_reward, chosen_logp, rejected_logp`; over responses: `kl`; per token:
    `chosen_nll`, `replay_nll`.
    """

    def __init__(
        self,
        pairs: Dealer[Pair],
        reference: Both,
        replay: Dealer[Row] | None,
        settings: TrainSettings,
        layout: Layout = PADDED,
    ) -> None:
        self.layout = layout
        self.pairs, self.reference, self.replay, self.settings = pairs, reference, replay, settings
        self.steps_per_epoch = pairs.steps_per_epoch

    def jobs(self, step: int, parts: int) -> list[Job]:
        """The jobs of a step: the pairs', then the replayed rows'."""
        lines = self.pairs.step(step)
        tokens = sum(int(line.count_S[0]) for line in lines)
        measure = partial(self._measure_pairs, pairs=len(lines), tokens=tokens)
        cut, lay, budget = self.layout.cut, self.layout.lay, self.settings.micro_tokens
        micros = cut(lines, budget, parts)
        jobs = [Job(micro, lay, partial(measure, lines=micro)) for micro in micros]
        if self.replay is None:
            return jobs
        rows = self.replay.step(step)
        replayed = partial(self._measure_replay, tokens=sum(len(line.target_N) for line in rows))
        return jobs + [Job(micro, lay, replayed) for micro in cut(rows, budget, parts)]

    def _measure_pairs(self, logp_S: Tensor, lines: list[Line], pairs: int, tokens: int) -> Shares:
        chosen_B, rejected_B = logp_S.view(-1, 2).unbind(dim=1)
        index = [line.index for line in lines]
        count_B2 = logp_S.new_tensor([line.count_S.tolist() for line in lines]).view(-1, 2)
        reference: Both = (self.reference[0][index].to(logp_S), self.reference[1][index].to(logp_S))
        losses_B, chosen_reward_B, rejected_reward_B = preference_loss(
            self.settings, (chosen_B, rejected_B), reference, (count_B2[:, 0], count_B2[:, 1])
        )
        kl_B2 = kl_estimate(logp_S.view(-1, 2), torch.stack(reference, dim=1))
        means = {
            "dpo_loss": losses_B,
            "accuracy": chosen_reward_B > rejected_reward_B,
            "margin": chosen_reward_B - rejected_reward_B,
            "chosen_reward": chosen_reward_B,
            "rejected_reward": rejected_reward_B,
            "chosen_logp": chosen_B,
            "rejected_logp": rejected_B,
            "kl": kl_B2.mean(dim=1),
        }
        shares = {name: values_B.sum() / pairs for name, values_B in means.items()}
        shares["chosen_nll"] = sft_loss(chosen_B).sum() / tokens
        shares["loss"] = shares["dpo_loss"] + self.settings.nll_weight * shares["chosen_nll"]
        return shares

    def _measure_replay(self, logp_S: Tensor, tokens: int) -> Shares:
        nll = sft_loss(logp_S).sum() / tokens
        return {"loss": self.settings.replay_weight * nll, "replay_nll": nll}


def preference_loss(how: TrainSettings, policy: Both, reference: Both, tokens: Both) -> Preference:
    """The loss that `how.loss` names. Of everything the chosen's [B] and the rejected's [B]."""
    if how.loss == "simpo":
        return simpo_loss(*policy, *tokens, how.beta, how.gamma)
    if how.loss == "dpo_norm":
        return dpo_norm_loss(*policy, *reference, *tokens, how.beta)
    if how.loss in FLIPPING:
        flipping = {"cdpo": cdpo_loss, "robust": robust_dpo_loss}[how.loss]
        return flipping(*policy, *reference, how.beta, how.flipped)
    plain = {"dpo": dpo_loss, "ipo": ipo_loss, "hinge": hinge_loss}[how.loss]
    return plain(*policy, *reference, how.beta)
