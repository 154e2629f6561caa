"""What a user may ask to see of a training: where a step's time goes, and curves in TensorBoard.

All of it lies in a folder beside `train.jsonl`, and is no part of the result. It changes no bit of
the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = "telemetry"  # in a model's directory
PROFILE = "tell where a step's time goes: a table and a trace, in the model's telemetry/"
TENSORBOARD = "curves of what train.jsonl has, for TensorBoard, in the model's telemetry/"


@dataclass(frozen=True)
class Telemetry:
    """What is asked for. Raises ValueError if it needs a package that is not installed."""

    profile: bool = False  # a table and a trace of a few steps
    tensorboard: bool = False  # what train.jsonl has, for TensorBoard

    def __post_init__(self) -> None:
        if self.tensorboard:
            _board()

    def board(self, directory: Path, step: int) -> Any:
        """A writer for TensorBoard that begins anew at `step`; None if it was not asked for."""
        return _board()(directory / FOLDER, purge_step=step) if self.tensorboard else None


def _board() -> Any:
    try:
        return import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard"
        ) from None


NOTHING = Telemetry()
