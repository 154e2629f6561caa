"""The one training loop: an objective's steps, in turn, each an update of the weights.

Knows no difference between SFT and DPO, and of files only where to put what it keeps.
"""

# S responses

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dpo.blocks import running_blocks
from dpo.checkpoint import FILES, find_training, load_training, save_training
from dpo.crew import Measured, crew
from dpo.lines import Line, MicroBatch, pad
from dpo.logprobs import chunk_for, chunked_logps
from dpo.objectives import Objective
from dpo.optimizer import clip_grad_norm, make_optimizer
from dpo.profile import Profile, Unprofiled
from dpo.records import Records
from dpo.settings import MAY_CHANGE, TrainSettings
from dpo.speed import operations, peak
from dpo.telemetry import FOLDER, NOTHING, Telemetry
from llama.children import one_thread
from llama.model import Llama
from llama.parallel import Group, sync_copies
from llama.shortage import naming_shortage

BETAS = (0.9, 0.95)  # Adam's, as Llama 2 was trained
MAX_SKIPS = 5  # steps in a row without a finite loss and gradient

Record = dict[str, Any]


def forward_logps(
    model: Llama,
    lines: Sequence[Line],
    device: torch.device,
    lay: Callable[[Sequence[Line]], MicroBatch] = pad,
) -> Tensor:
    """Summed log-probability [S] of each response of some lines, in one forward pass."""
    batch = lay(lines).to(device)
    chunk = chunk_for(model.config.vocab_size)

    def head(hidden_NC: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        return chunked_logps(hidden_NC, project, batch.target_N, batch.count_S, chunk)

    logp_S: Tensor = model(batch.tokens_BT, batch.attend, head, batch.source_N)
    return logp_S


@dataclass
class Progress:
    """How far a run is; with weights and moments, all that it takes to go on."""

    step: int = 0  # the next one
    skipped: int = 0  # steps that changed nothing
    in_a_row: int = 0  # of them, the last ones
    record: Record = field(default_factory=dict)  # the last step's
    record_bytes: int = 0
    saves: int = 0

    def count(self, record: Record) -> None:
        """Takes note of a step. ValueError, naming it, at the MAX_SKIPS-th bad one in a row."""
        bad = [name for name in ("loss", "grad_norm") if record[name] is None]
        self.step, self.record = record["step"] + 1, record
        self.skipped += bool(bad)
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if self.in_a_row == MAX_SKIPS:
            raise ValueError(
                f"training step {record['step']}: {bad[0]} is not finite, {MAX_SKIPS} steps in a "
                "row; lower the learning rate or look at this step's data"
            )


class Descent:
    """One run of the optimizer over an objective; `run` is all there is to call."""

    def __init__(
        self,
        model: Llama,
        objective: Objective,
        settings: TrainSettings,
        *,
        seed: int,
        group: Group,
        directory: Path | None,
        processes: int = 1,
        telemetry: Telemetry = NOTHING,
    ) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.seed, self.group, self.directory = seed, group, directory
        self.processes = processes  # of this rank; each takes a part of a step's jobs
        self.steps = settings.steps(objective.steps_per_epoch)
        self.optimizer = make_optimizer(model, settings, BETAS)
        self.telemetry, self.profile = telemetry, Unprofiled()
        self.operations = 0.0  # of all ranks, by the formula of MFU
        rate = peak(group.device)
        self.peak = None if rate is None else rate * group.world_size

    def run(
        self,
        identity: Record,
        description: str,
        after_step: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Takes all steps that are left; returns the metrics.

        identity: what model and data these are; a frozen run with another one is refused.
        after_step: called with (steps taken, steps in all).
        """
        identity = {"seed": self.seed, **_fixed(self.settings), **identity}
        progress = self._resume(identity)
        is_main, started, tokens = self.group.is_main, time.perf_counter(), 0
        records = self._records(progress)
        bar = tqdm(desc=description, initial=progress.step, total=self.steps, disable=not is_main)
        together = crew(self.model, self._accumulate, self.processes)
        training = _training(self.model, self.settings)
        with records, bar, training, together as accumulate, self._profiled(description, progress):
            while progress.step < self.steps:
                with one_thread() if self.processes > 1 else nullcontext():
                    record = self._step(progress.step, accumulate)
                records.add(record)
                progress.count(record)
                if after_step is not None:
                    after_step(progress.step, self.steps)
                if progress.step % self.settings.save_every == 0 or progress.step == self.steps:
                    progress.record_bytes = records.sync()
                    self._save(identity, progress)
                tokens += record["tokens"]
                speed = self._speed(tokens, time.perf_counter() - started)
                bar.set_postfix(_shown(record, speed), refresh=False)
                bar.update()
        seconds = time.perf_counter() - started
        counts = {"steps": self.steps, "skipped": progress.skipped, "tokens": tokens}
        speed = {"seconds": seconds, **self._speed(tokens, seconds)}
        return {**progress.record, **counts, **speed}

    def _step(self, step: int, accumulate: Callable[[int], list[Measured]]) -> Record:
        """One update of the weights, or none if loss or gradient is not finite; its record."""
        rate, profile = self.settings.learning_rate_at(step, self.steps), self.profile
        phase = self.group.phase(f"training step {step}")
        with phase, self._naming_shortage(step), profile.step():
            with profile.phase("communication"):  # what is left of it beside the part's own phases
                shares = self._added_up(accumulate(step))
            with profile.phase("optimizer"):
                norm = clip_grad_norm(self.model, self.settings.clip, profile.heard(self.group))
                if isfinite(shares["loss"]) and isfinite(norm):
                    self.optimizer.step(rate)
                self.optimizer.zero_grad()
            took = shares.pop("operations")
            profile.count(shares["tokens"], took)
        self.operations += took
        numbers = {**shares, "grad_norm": norm, "learning_rate": rate}
        finite = {name: value if isfinite(value) else None for name, value in numbers.items()}
        return {"step": step, **finite, "tokens": int(shares["tokens"])}

    def _accumulate(self, step: int, part: int) -> Measured:
        """Gradients of one part of this rank's jobs, added up; and so their shares."""
        first, every = self.group.rank * self.processes + part, self._parts
        config, phase = self.model.config, self.profile.phase
        measured: dict[str, list[Tensor]] = {}
        with phase("other"), _dropout_seeded(self.group, self.seed, step, first):
            with phase("data"):
                jobs = self.objective.jobs(step, every)[first::every]
            for left, job in zip(range(len(jobs))[::-1], jobs):
                sync_copies(self.model, self.group, now=left == 0)
                with phase("forward"):
                    logp_S = forward_logps(self.model, job.lines, self.group.device, job.lay)
                    shares = job.measure(logp_S)
                with phase("backward"):
                    shares["loss"].backward()
                for name, share in shares.items():
                    measured.setdefault(name, []).append(share.detach().double())
            names = sorted(measured)
            totals = torch.stack([torch.stack(measured[name]).sum() for name in names])
            lengths = [len(line) for job in jobs for line in job.lines]
            took = operations(config, lengths, frozen=self.settings.lora is not None)
            counts = {"tokens": sum(lengths), "operations": took}
            return dict(zip(names, totals.tolist())) | counts  # the one wait for the device

    def _added_up(self, measured: Sequence[Measured]) -> Measured:
        """The shares of all parts, of all ranks."""
        names = sorted(measured[0])
        totals = [sum(one[name] for one in measured) for name in names]
        return dict(zip(names, self.group.sum(totals)))

    @property
    def _parts(self) -> int:
        return self.group.world_size * self.processes

    def _speed(self, tokens: int, seconds: float) -> dict[str, float]:
        """Of all steps until now; the share of the cards' peak only where that is known."""
        mfu = {} if self.peak is None else {"mfu": self.operations / (seconds * self.peak)}
        return {"tokens_per_second": tokens / seconds, **mfu}

    def _records(self, progress: Progress) -> Records:
        if self.directory is None or not self.group.is_main:
            return Records(None)
        board = self.telemetry.board(self.directory, progress.step)
        return Records(self.directory, progress.record_bytes, board)

    @contextmanager
    def _profiled(self, description: str, progress: Progress) -> Iterator[None]:
        """The main rank is profiled, if that is wanted; the crew has forked by then, without it."""
        group, steps = self.group, range(progress.step, self.steps)
        if self.telemetry.profile and self.directory is not None and group.is_main and steps:
            title = f"{description}: rank {group.rank} of {group.world_size} on {group.device}"
            if self.processes > 1:
                title += f", process 0 of the {self.processes} that share its part of a step"
            place = self.directory / FOLDER
            self.profile = Profile(place, group.device, title, steps, self.peak)
        try:
            yield
        finally:
            self.profile.close()

    def _save(self, identity: Record, progress: Progress) -> None:
        if self.directory is not None:
            file = self.directory / FILES[progress.saves % len(FILES)]
            progress.saves += 1
            state = {"identity": identity, "progress": asdict(progress)}
            save_training(file, self.model, self.optimizer, state, self.group)

    def _resume(self, identity: Record) -> Progress:
        """The frozen run's progress, its weights and moments loaded; or that of a beginning."""
        frozen = None if self.directory is None else find_training(self.directory, self.group)
        if frozen is None:
            return Progress()
        was = frozen.state["identity"]
        names = [name for name in identity if was.get(name) != identity[name]]
        if names:
            changes = "; ".join(f"{n} was {was.get(n)}, is {identity[n]}" for n in names)
            raise ValueError(f"{self.directory} holds another training run: {changes}")
        if frozen.fault and self.group.is_main:
            tqdm.write(f"{frozen.fault}; going on from {frozen.file.name}", file=sys.stderr)
        load_training(frozen.file, self.model, self.optimizer, frozen.state["updates"])
        return Progress(**frozen.state["progress"])

    def _naming_shortage(self, step: int) -> AbstractContextManager[None]:
        return naming_shortage(
            f"training step {step} does not fit in memory: lower micro_tokens (now "
            f"{self.settings.micro_tokens}) or set recompute to selective or full (now "
            f"{self.settings.recompute}), and run again"
        )


def _fixed(settings: TrainSettings) -> Record:
    fixed = {name: value for name, value in asdict(settings).items() if name not in MAY_CHANGE}
    return fixed | {"lora_targets": list(settings.lora_targets)}  # as JSON will give it back


def _shown(record: Record, speed: dict[str, float]) -> dict[str, str]:
    names = ("loss", "accuracy", "margin", "grad_norm")
    shown = {name: f"{record[name]:.3g}" for name in names if record.get(name) is not None}
    shown |= {"tokens/s": f"{speed['tokens_per_second']:,.0f}"}
    return shown | ({"MFU": f"{speed['mfu']:.1%}"} if "mfu" in speed else {})


@contextmanager
def _training(model: Llama, settings: TrainSettings) -> Iterator[None]:
    """Train mode with dropout, the blocks run as is set; afterwards eval mode as ever."""
    model.train()
    model.dropout = settings.dropout
    try:
        with running_blocks(model, settings.recompute, settings.compile):
            yield
    finally:
        model.eval()
        model.dropout = 0.0


@contextmanager
def _dropout_seeded(group: Group, seed: int, step: int, part: int) -> Iterator[None]:
    """Dropout draws from the global generators: seeded by (seed, step, part), then restored."""
    cards = [group.device] if group.device.type == "cuda" else []
    bits = np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)
    with torch.random.fork_rng(cards):
        torch.manual_seed(int(bits[0]))
        yield
