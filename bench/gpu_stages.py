"""`python -m bench.gpu_stages`: what the loop does with a model of 7B's shape, on one GPU, in turn.

Random bf16 weights are written; loaded as fp32 masters that are computed with in bf16; trained for
one step of SFT; saved, in fp32; loaded in bf16, and sampled from; loaded as masters again, and
trained for one step of DPO. Each stage calls what the loop calls there, and begins with nothing on
the card but what it needs. Seconds are those of the whole call: a training's hold the fingerprint
of all weights, and DPO's the reference too; a training's tokens a second are those of its one step,
its first. Files are read soon after they were written, so from
memory as far as that holds them. Sampling is done twice: its kernels are compiled the first time.
The directory is removed. `--miniature` runs it on the CPU with tiny shapes, to see that it works.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from bench.gpu import SEED, SEVEN, device_name, parsed, random_model
from bench.gpu_training import (
    Task,
    begin_afresh,
    memory_cells,
    most_memory,
    pairs_of,
    plan,
    rows_of,
)
from bench.loading import GB, WORDS
from bench.report import number
from bench.sampling_race import drawn
from bench.shapes import TINY, Workload, requests
from dpo import train_dpo, train_sft
from llama import LlamaConfig, Tokenizer, load_sharded, load_split, save, train_tokenizer
from llama.files import replace_file
from llama.parallel import Group, start
from llama.plan import MASTER, Need, Sampling, sampling
from llama.team import join
from sampling import generate

T = TypeVar("T")
DTYPE = torch.bfloat16  # of the computation, and of the first weights
HEADER = "| stage | seconds | a second | most memory | planned | planned / measured |"


@dataclass(frozen=True)
class Size:
    """The two trainings and the sampling, of one shape of model."""

    sft: Task
    dpo: Task
    sampling: Workload

    @property
    def config(self) -> LlamaConfig:
        """The model's."""
        return self.sampling.config

    @property
    def disk(self) -> int:
        """Bytes of files that there are at once: the trained model's, about."""
        return MASTER * self.config.parameter_count


def size_of(config: LlamaConfig, T: int, prompts: int, prompt: int, new: int) -> Size:
    """Four lines of T tokens for each training; so many prompts, with four samples each."""
    sft = Task("SFT", config, T=T, recompute="full", moments="bfloat16", compiled=False)
    asked = Workload("sampling", prompts, 4, 0, prompt, prompt, prompt + new, config, most_new=new)
    return Size(sft, replace(sft, name="DPO", pairs=True), asked)


LARGE = size_of(SEVEN, T=2048, prompts=64, prompt=512, new=128)
LITTLE = size_of(TINY, T=60, prompts=2, prompt=20, new=12)


@dataclass(frozen=True)
class Stage:
    """What a stage took, the most memory of the card in it, and what the plan said of that."""

    name: str
    seconds: float
    rate: float  # a second
    unit: str
    most: int | None
    planned: int | None = None

    @property
    def row(self) -> str:
        """Of the table."""
        each = f"{self.rate / GB:.2f} GB" if self.unit == "bytes" else number(self.rate) + " tokens"
        cells = (self.name, f"{self.seconds:.1f}", each, *memory_cells(self.most, self.planned))
        return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    given = parsed("python -m bench.gpu_stages", __doc__, arguments, writes=True)
    if given is None:
        return 2
    size = LITTLE if given.miniature else LARGE
    room = given.room or Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(room).free) < size.disk:
        what = f"{room} has {free / GB:.1f} GB free, {size.disk / GB:.1f} GB are needed"
        print(f"error: {what}; --room names another place", file=sys.stderr)
        return 2
    group = start()
    if given.miniature:
        group = replace(group, device=torch.device("cpu"))
    lines = [*heading(size, group.device), HEADER, "| --- | --- | --- | --- | --- | --- |"]
    try:
        with tempfile.TemporaryDirectory(prefix="stages-", dir=room) as folder:
            for stage in stages(Path(folder), size, group):
                lines.append(stage.row)
                print(lines[-1], flush=True)
    finally:
        group.stop()
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if given.out:
        replace_file(given.out, text.encode())
    return 0


def heading(size: Size, device: torch.device) -> tuple[str, str]:
    """What was measured, and on what."""
    billions, task, asked = size.config.parameter_count / 1e9, size.sft, size.sampling
    return (
        f"## Stages of the loop on {device_name(device)}\n",
        f"`python -m bench.gpu_stages`, torch {torch.__version__}: {billions:.2f} billion random "
        f"weights; each training is one step of {task.lines} lines of {task.T} tokens; sampled are "
        f"{asked.prompts * asked.n} answers of {asked.most_new} tokens at most to {asked.prompts} "
        f"prompts of {asked.longest}.\n",
    )


def stages(path: Path, size: Size, group: Group) -> Iterator[Stage]:
    """Each in turn. Of the two checkpoints only one is on the disk at a time."""
    base, trained = path / "base", path / "trained"
    write = partial(write_random, base, size.sampling, group.device)
    _, seconds, most = watched(group.device, write)
    rate = weight_bytes(base) / seconds
    yield Stage("random bf16 weights drawn and written", seconds, rate, "bytes", most)
    yield from training_stages(size.sft, base, trained, group)
    yield from sampling_stages(size.sampling, trained, group)
    yield from training_stages(size.dpo, trained, None, group)


def training_stages(task: Task, path: Path, out: Path | None, group: Group) -> Iterator[Stage]:
    """Loads the model and removes its directory, takes a step; saves it, if it is said where."""
    need, device, size = plan(task, DTYPE), group.device, weight_bytes(path)
    planned = need.parts["weights"]
    (model, tokenizer), seconds, most = watched(device, lambda: load_sharded(path, group, DTYPE))
    yield Stage(f"loaded for {task.name}", seconds, size / seconds, "bytes", most, planned)
    shutil.rmtree(path)
    how = replace(task.settings, max_steps=1)

    def step() -> dict[str, float]:
        if task.pairs:
            return train_dpo(model, pairs_of(task, task.lines), how, seed=SEED, group=group)
        return train_sft(model, rows_of(task, task.lines), how, seed=SEED, group=group)

    found, seconds, most = watched(device, step)
    rate = found["tokens_per_second"]
    yield Stage(f"{task.name}, one step", seconds, rate, "tokens", most, need.total)
    if out:
        _, seconds, most = watched(device, lambda: save(model, tokenizer, out))
        rate = weight_bytes(out) / seconds
        yield Stage("saved, fp32", seconds, rate, "bytes", most, planned)


def sampling_stages(workload: Workload, path: Path, group: Group) -> Iterator[Stage]:
    """Loads the model as one rank does that samples alone, and samples twice."""
    need, device, slots = sampling_need(workload), group.device, workload.prompts * workload.n
    load = partial(load_split, path, join(group, 1), DTYPE)
    (model, _), seconds, most = watched(device, load)
    planned, rate = need.parts["weights"], weight_bytes(path) / seconds
    yield Stage("loaded for sampling", seconds, rate, "bytes", most, planned)
    asked, how = requests(workload, SEED), workload.decoding()
    for name in ("sampling", "sampling again"):
        sample = partial(generate, model, asked, how, seed=SEED, slots=slots)
        made, seconds, most = watched(device, sample)
        tokens = sum(drawn(one) for several in made for one in several)
        yield Stage(name, seconds, tokens / seconds, "tokens", most, need.total)


def watched(device: torch.device, work: Callable[[], T]) -> tuple[T, float, int | None]:
    """What comes of the work, its seconds, and the most memory of the card in it."""
    begin_afresh(device)
    started = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - started, most_memory(device)


def write_random(path: Path, workload: Workload, device: torch.device) -> None:
    """A checkpoint whose weights are drawn on the device."""
    path.mkdir()
    train_tokenizer(WORDS, path / "words.model", 280)
    save(random_model(workload, device, DTYPE), Tokenizer(path / "words.model"), path)


def weight_bytes(path: Path) -> int:
    """Of a checkpoint's weight files."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def sampling_need(workload: Workload) -> Need:
    """What the plan says of it."""
    assert workload.most_new is not None
    slots, new = workload.prompts * workload.n, workload.most_new
    how = Sampling(DTYPE.itemsize, slots, workload.longest, new, workload.n)
    return sampling(workload.config, how)


if __name__ == "__main__":
    sys.exit(main())
