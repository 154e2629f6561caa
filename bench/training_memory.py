"""`python -m bench.training_memory`: the most memory of DPO above the weights, ours and TRL's.

Each side trains in a fresh process, on the same weights and pairs, as in the race. It says when the
weights are there and everything is imported; from then on the memory of it and of all that it
forks is looked at every few milliseconds, pages that several share counted once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from bench.dpo_race import train_ours, train_theirs
from bench.report import machine
from bench.shapes import MIDDLE, TINY, pairs, random_weights
from bench.twin import transformers_twin
from llama import Llama
from llama.files import replace_file

MODELS = {"tiny": (TINY, 4, 96), "26M": (MIDDLE, 4, 48)}  # pairs in their forward pass, in all
OURS = {  # processes, tokens in a forward pass
    "as in the race: two processes, a step at once": (2, 8192),
    "two processes, 512 tokens at once": (2, 512),
    "one process, 512 tokens at once": (1, 512),
}
THEIRS = "theirs"
OFTEN = 0.005  # seconds between two looks
MB = 1e6
SEED = 0

TEXT = """## Memory of DPO, ours and TRL's

What `{command}` measured, on {machine}, torch {torch}, {day}, in MB above what each process had
when weights and pairs were there and everything was imported; what several processes share is
counted once. TRL makes 4 pairs a forward pass, the fewest that it raced with; the reference's
log-probabilities are part of it on both sides.

| model, how ours trains | its weights | ours | TRL's DPOTrainer | ours / theirs |
| --- | --- | --- | --- | --- |
{rows}
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench.training_memory", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, help="file to write the table to")
    parser.add_argument("--as-side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.as_side:
        return train(*given.as_side)
    rows = []
    for name in given.models:
        theirs, weights = most_memory(THEIRS, name), 4 * MODELS[name][0].parameter_count / MB
        for side in OURS:
            ours = most_memory(side, name)
            cells = f"{weights:,.1f} | {ours:,.0f} | {theirs:,.0f} | **{ours / theirs:.2f}**"
            rows.append(f"| {name}, {side} | {cells} |")
    text = TEXT.format(
        command=" ".join(["python -m bench.training_memory", *arguments]), machine=machine(),
        torch=torch.__version__, day=date.today().isoformat(), rows="\n".join(rows),
    )  # fmt: skip
    print(text)
    if given.out:
        replace_file(given.out, text.encode())
    return 0


def most_memory(side: str, name: str) -> float:
    """The most memory of a training, in MB above what was before. RuntimeError if it fails."""
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
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: run it to see why")
    return (most - before) / MB


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
    config, size, count = MODELS[name]
    model, data = random_weights(Llama(config), SEED), pairs(count, SEED)
    if side != THEIRS:
        processes, at_once = OURS[side]
        _ready()
        train_ours(model, data, 1, SEED, processes=processes, micro_tokens=at_once)
        return 0
    for module in ("trl", "datasets", "tokenizers"):
        import_module(module)
    twin = transformers_twin(model)
    del model
    _ready()
    train_theirs(twin, data, size, 1, SEED)
    return 0


def _ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    sys.exit(main())
