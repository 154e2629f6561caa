"""Each preference loss that TRL has too, against TRL's own: float64, random log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo.losses import (
    cdpo_loss,
    dpo_loss,
    dpo_norm_loss,
    hinge_loss,
    ipo_loss,
    robust_dpo_loss,
    sft_loss,
    simpo_loss,
)

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS, LONGEST = 16, 9


class _Anything(dict[str, Any]):
    """A dictionary of dictionaries of lists."""

    def __missing__(self, key: str) -> Any:
        self[key] = defaultdict(list)
        return self[key]


class Tokens:
    """Log-probabilities of single tokens, of responses of 1 to LONGEST tokens: what TRL sums."""

    def __init__(self, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.count = torch.randint(1, LONGEST + 1, (2 * PAIRS,), generator=draw)
        self.mask = torch.arange(LONGEST) < self.count[:, None]
        self.policy, self.reference = (
            -3 * torch.rand(2 * PAIRS, LONGEST, generator=draw, dtype=torch.float64) * self.mask
            for _ in range(2)
        )

    @property
    def ours(self) -> tuple[Tensor, ...]:
        """Policy chosen, policy rejected, reference chosen, reference rejected: sums [B]."""
        return (*self.policy.sum(dim=1).chunk(2), *self.reference.sum(dim=1).chunk(2))

    @property
    def counts(self) -> tuple[Tensor, ...]:
        return self.count.chunk(2)


def trl(loss: str | list[str], data: Tokens, beta: float, **more: Any) -> Tensor:
    """TRL's own mean loss, computed on a trainer without a model."""
    from trl.trainer.dpo_trainer import DPOTrainer

    losses = [loss] if isinstance(loss, str) else loss
    usual: dict[str, Any] = {"label_smoothing": 0.0, "loss_weights": [1.0]}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        args=SimpleNamespace(),
        beta=beta,
        loss_types=losses,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        aux_loss_enabled=False,
        _metrics=_Anything(),
        _total_train_tokens=0,
        _tp_size=1,
        **(usual | more),
    )
    logp = data.policy
    outputs = SimpleNamespace(
        log_probs=logp, entropy=logp, mean_logits=logp, is_top1=torch.ones_like(logp).bool()
    )
    nothing = torch.zeros(len(logp), 1, dtype=torch.long)  # the prompt, one token
    inputs = {
        "input_ids": torch.ones(len(logp), LONGEST + 1, dtype=torch.long),
        "attention_mask": torch.cat([nothing + 1, data.mask.long()], dim=1),
        "completion_mask": torch.cat([nothing, data.mask.long()], dim=1),
        "ref_chosen_logps": data.ours[2],
        "ref_rejected_logps": data.ours[3],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(dpo_loss, "sigmoid"), (hinge_loss, "hinge"), (dpo_norm_loss, "sigmoid_norm")],
)
def test_parity(ours: Any, theirs: str) -> None:
    data = Tokens()
    counts = data.counts if ours is dpo_norm_loss else ()
    expected = trl(theirs, data, 0.3)
    same(ours(*data.ours, *counts, 0.3)[0].mean(), expected)
    swapped = [data.ours[i] for i in (1, 0, 2, 3)]  # negative control: TRL must see the difference
    assert not torch.isclose(ours(*swapped, *counts, 0.3)[0].mean(), expected)


def test_parity_of_robust() -> None:
    data = Tokens()
    ours = robust_dpo_loss(*data.ours, 0.3, 0.2)[0].mean()
    same(ours, trl("robust", data, 0.3, label_smoothing=0.2))
    assert not torch.isclose(ours, trl("robust", data, 0.3, label_smoothing=0.1))


def test_parity_of_ipo_which_trl_takes_by_length() -> None:
    data = Tokens()
    counts = data.counts * 2
    means = [logp / count for logp, count in zip(data.ours, counts, strict=True)]
    same(ipo_loss(*means, 0.3)[0].mean(), trl("ipo", data, 0.3))
    assert not torch.isclose(ipo_loss(*data.ours, 0.3)[0].mean(), trl("ipo", data, 0.3))


def test_parity_of_conservative() -> None:
    """TRL smooths labels in its sorting loss alone; a single pair is sorted already."""
    whole = Tokens()
    for pair in range(PAIRS):
        data = Tokens()
        rows = [pair, PAIRS + pair]
        data.policy, data.reference = whole.policy[rows], whole.reference[rows]
        data.mask = whole.mask[rows]
        expected = trl("aot", data, 0.3, label_smoothing=0.2)
        same(cdpo_loss(*data.ours, 0.3, 0.2)[0].mean(), expected)


def test_parity_of_the_nll_term() -> None:
    """RPO's: the chosen responses' loss per token of the step, with its weight."""
    data = Tokens()
    chosen, tokens = data.ours[0], data.counts[0].sum()
    ours = dpo_loss(*data.ours, 0.3)[0].mean() + 0.7 * sft_loss(chosen).sum() / tokens
    same(ours, trl(["sigmoid", "sft"], data, 0.3, loss_weights=[1.0, 0.7]))


def test_parity_of_simpo() -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    data = Tokens()
    trainer = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    means = [logp / count for logp, count in zip(data.ours[:2], data.counts, strict=True)]
    theirs = CPOTrainer.cpo_loss(trainer, *means)
    for our, their in zip(simpo_loss(*data.ours[:2], *data.counts, 2.0, 0.7), theirs, strict=True):
        same(our, their)
