"""`python -m bench.loading`: how much memory and time a rank takes to load its part of a model.

Writes a directory of random bf16 weights in the shape of 7B (13.5 GB; `--model` chooses another),
reads its files from end to end, then has two processes load it, each its own part, kept in bf16.
Before either reading the files are taken out of the page cache. Two more processes merely write as
much memory, at once: no loading can be faster. The directory is removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from bench import hide_gpus
from bench.options import folder, place, positive
from bench.ranks import run_ranks
from bench.report import machine
from llama import PRESETS, LlamaConfig, Tokenizer, load_sharded, train_tokenizer
from llama.checkpoint import Weights, unfilled
from llama.files import replace_file
from llama.huggingface import write_hf
from llama.parallel import start

BLOCK = 2**24  # bytes read at once where a file is merely read
GB = 1e9
SMALL = "small"
WORDS = ("a line of words for a tokenizer of bytes and little else",)

TEXT = """## Loading

What `{command}` measured, on {machine}, torch {torch}, {day}: a directory of random bf16 weights in
the shape of {model} ({size:.2f} GB in files of 5 GB), not in the page cache, loaded by {ranks}
processes, each of which reads and keeps its own rows.

| | |
| --- | --- |
| made up and written, tensor by tensor | {written:.1f} s |
| most memory of the process that wrote it, all it is made of included | {writer:.2f} GB |
| files read from end to end, by one process | {read:.1f} s |
| as much fresh memory written by {ranks} processes at once, start to last | {filled:.1f} s |
| loaded by {ranks} ranks, start to last | **{loaded:.1f} s** |
| most memory of a rank, Python and torch included | **{peak:.2f} GB** |
| … of that before loading | {before:.2f} GB |
| the model divided by the ranks, and 2 GB | {bound:.2f} GB |
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a rank took more memory than it should."""
    hide_gpus()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench.loading", description=__doc__)
    parser.add_argument("--model", choices=PRESETS, default="7B", help="shape of the weights")
    parser.add_argument("--ranks", type=positive, default=2)
    parser.add_argument("--room", type=folder, help="where to make the directory (the system's)")
    parser.add_argument("--out", type=place, help="file to write the table to")
    parser.add_argument("--as-rank-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.as_rank_of:
        return load_as_rank(given.as_rank_of)
    if given.fill:
        return fill_as_rank(given.fill)
    path = Path(tempfile.mkdtemp(prefix="loading-", dir=given.room))
    try:
        found = measure(path, PRESETS[given.model], given.ranks)
    finally:
        shutil.rmtree(path)
    text = TEXT.format(
        command=" ".join(["python -m bench.loading", *arguments]), machine=machine(),
        torch=torch.__version__, day=date.today().isoformat(), model=given.model,
        ranks=given.ranks, **found,
    )  # fmt: skip
    print(text)
    if given.out:
        replace_file(given.out, text.encode())
    return int(found["peak"] > found["bound"])


def measure(path: Path, config: LlamaConfig, ranks: int) -> dict[str, float]:
    """Seconds and gigabytes of each step."""
    size = 2 * config.parameter_count / GB
    write_random(path / SMALL, PRESETS["tiny"])
    started = time.perf_counter()
    write_random(path, config)
    written, writer = time.perf_counter() - started, most_memory()
    read = min(read_through(path) for _ in range(2))
    forget_files(path)
    part = 2 * config.parameter_count // ranks
    _, filled = on_ranks(["--fill", str(part)], ranks)
    (before, peak), loaded = on_ranks(["--as-rank-of", str(path)], ranks)
    return {
        "size": size, "written": written, "writer": writer, "read": read, "filled": filled,
        "loaded": loaded, "peak": peak, "before": before, "bound": size / ranks + 2,
    }  # fmt: skip


def on_ranks(words: list[str], ranks: int) -> tuple[list[float], float]:
    """(most memory of a rank in GB before and after, seconds from the first start to the last end)
    of a task below.
    """
    told = [[*map(float, line.split())] for line in run_ranks("bench.loading", words, ranks)]
    starts, ends, *memory = zip(*told)
    return [max(many) for many in memory], max(ends) - min(starts)


def write_random(path: Path, config: LlamaConfig) -> None:
    """A checkpoint whose weights are made up one by one, when they are written."""
    path.mkdir(exist_ok=True)
    train_tokenizer(WORDS, path / "words.model", 280)
    like = unfilled(config).to(torch.bfloat16).state_dict()

    def made_up(name: str, part: object, out: object) -> Tensor:
        return torch.randn(like[name].shape, dtype=torch.float32).to(torch.bfloat16)

    write_hf(path, Weights(like, made_up), config, Tokenizer(path / "words.model"))


def forget_files(path: Path) -> None:
    """Takes files out of the page cache; what is not on the disk yet stays."""
    for file in path.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> float:
    """Seconds that reading all weight files takes."""
    forget_files(path)
    block = memoryview(bytearray(BLOCK))
    started = time.perf_counter()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(block):
                pass
    return time.perf_counter() - started


def load_as_rank(path: Path) -> int:
    """What each of the processes does."""
    group = start()
    load_sharded(path / SMALL, group)  # imports what there is to import
    group.barrier()
    before, started = most_memory(), time.time()
    model_and_tokenizer = load_sharded(path, group, torch.bfloat16, masters=torch.bfloat16)
    group.barrier()
    ended = time.time()
    del model_and_tokenizer  # kept until all ranks were done
    print(started, ended, before, most_memory())
    group.stop()
    return 0


def fill_as_rank(size: int) -> int:
    """The floor: so many bytes of fresh memory, written."""
    group = start()
    group.barrier()
    before, started = most_memory(), time.time()
    torch.ones(size, dtype=torch.uint8)
    group.barrier()
    print(started, time.time(), before, most_memory())
    group.stop()
    return 0


def most_memory() -> float:
    """The most memory that this process has had resident, in GB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / GB


if __name__ == "__main__":
    sys.exit(main())
