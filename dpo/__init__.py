"""Preferences → weights: DPO and SFT. Knows no text, no sampling and no judge."""

from dpo.checkpoint import forget
from dpo.lines import Pair, Row
from dpo.logprobs import response_logps
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
from dpo.settings import TrainSettings
from dpo.telemetry import Telemetry
from dpo.trainer import pair_logps, row_logps, train_dpo, train_sft

__all__ = [
    "Pair",
    "Row",
    "Telemetry",
    "TrainSettings",
    "cdpo_loss",
    "dpo_loss",
    "dpo_norm_loss",
    "forget",
    "hinge_loss",
    "ipo_loss",
    "kl_estimate",
    "pair_logps",
    "response_logps",
    "robust_dpo_loss",
    "row_logps",
    "sft_loss",
    "simpo_loss",
    "train_dpo",
    "train_sft",
]
