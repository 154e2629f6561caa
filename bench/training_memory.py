"""`python -m bench.training_memory`: the most memory of DPO above the weights, ours and TRL's, and
what it costs in time of the processor.

Each side trains in a fresh process, on the same weights and pairs, as in the race. First it trains
a very small model in the same way: what libraries take when they are first used is no training's.
When the weights are there it says so; from then on the memory of it and of all that it forks is
looked at every few milliseconds, pages that several share counted once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import torch

from bench import hide_gpus
from bench.dpo_race import BATCH, train_ours, train_theirs
from bench.options import place
from bench.report import machine
from bench.shapes import MIDDLE, TINY, pairs, random_weights
from bench.twin import transformers_twin
from llama import Llama, LlamaConfig
from llama.files import replace_file

SMALL = replace(TINY, dim=16, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=32)
MODELS = {"tiny": (TINY, 96), "26M": (MIDDLE, 48)}  # pairs
THEIRS = {  # pairs in a forward pass, whether activations are computed again in the backward pass
    "TRL's DPOTrainer, 4 pairs at once": (4, False),
    "TRL's DPOTrainer, the same, activation checkpointing": (4, True),
    "TRL's DPOTrainer, a step at once": (BATCH, False),
}
OURS = {  # processes, tokens in a forward pass, what is computed again in the backward pass
    "ours, as in the race: two processes, a step at once": (2, 8192, "none"),
    "ours, two processes, 512 tokens at once": (2, 512, "none"),
    "ours, one process, 512 tokens at once": (1, 512, "none"),
    "ours, the same, recompute selective": (1, 512, "selective"),
    "ours, the same, recompute full": (1, 512, "full"),
}
OFTEN = 0.005  # seconds between two looks
MB = 1e6
SEED = 0
NAME = "python -m bench.training_memory"

TEXT = """## Memory of DPO, ours and TRL's

What `{command}` measured, on {machine}, torch {torch}, {day},
in MB above what each process had when weights and pairs were there and it had trained a very small
model in the same way, for libraries take memory when they are first used; what several processes
share is counted once. The time is the processors', of all processes, of the whole run; the
reference's log-probabilities are part of it on both sides. 4 pairs are the fewest that TRL raced
with, and a step has 16. Ratios are to each model's first line.

| model, how it trains | its weights | memory above | of TRL's | time a pair, ms | of TRL's |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    hide_gpus()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=place, help="file to write the table to")
    parser.add_argument("--as-side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.as_side:
        return train(*given.as_side)
    rows = []
    for name in given.models:
        config, count = MODELS[name]
        first: tuple[float, float] | None = None
        for side in (*THEIRS, *OURS):
            memory, seconds = measure(side, name)
            first = first or (memory, seconds)
            cells = f"{4 * config.parameter_count / MB:,.1f} | {memory:,.0f} | "
            cells += f"**{memory / first[0]:.2f}** | {1e3 * seconds / count:,.1f} | "
            rows.append(f"| {name}, {side} | {cells}{seconds / first[1]:.2f} |")
    text = TEXT.format(
        command=" ".join([f"OMP_NUM_THREADS={torch.get_num_threads()}", NAME, *arguments]),
        machine=machine(),
        torch=torch.__version__,
        day=date.today().isoformat(),
        rows="\n".join(rows),
    )
    print(text)
    if given.out:
        replace_file(given.out, text.encode())
    return 0


def measure(side: str, name: str) -> tuple[float, float]:
    """Of a training: the most memory, in MB above what was before, and the processors' seconds.

    RuntimeError if it fails.
    """
    command = [sys.executable, "-m", "bench.training_memory", "--as-side", side, name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        while (line := process.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError(f"{' '.join(command)} failed: run it to see why")
        before = most = in_use(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            most = max(most, in_use(process.pid))
            time.sleep(OFTEN)
        told = process.stdout.read().split()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: run it to see why")
    return (most - before) / MB, float(told[-1])


def in_use(pid: int) -> int:
    """Bytes resident of a process and all that it started; shared pages are divided by users."""
    home = Path(f"/proc/{pid}")
    try:
        pss = int((home / "smaps_rollup").read_text().split("Pss:")[1].split()[0]) * 1024
        children = (home / f"task/{pid}/children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0
    return pss + sum(in_use(int(child)) for child in children)


def train(side: str, name: str) -> int:
    """What each process does."""
    _work(side, SMALL, 2 * BATCH)()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what is free by now would be used, and not counted
    work = _work(side, *MODELS[name])
    print("ready", flush=True)
    sys.stdin.readline()
    before = _seconds()
    work()
    print(_seconds() - before)
    return 0


def _work(side: str, config: LlamaConfig, count: int) -> Callable[[], object]:
    """A training on so many pairs, whose weights and pairs are there."""
    model, data = random_weights(Llama(config), SEED), pairs(count, SEED)
    if side in THEIRS:
        size, checkpointing = THEIRS[side]
        twin = transformers_twin(model)
        return partial(train_theirs, twin, data, size, 1, SEED, checkpointing=checkpointing)
    processes, at_once, recompute = OURS[side]
    how = {"processes": processes, "micro_tokens": at_once, "recompute": recompute}
    return partial(train_ours, model, data, 1, SEED, **how)  # type: ignore[arg-type]


def _seconds() -> float:
    """Of the processors, for this process and its children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
