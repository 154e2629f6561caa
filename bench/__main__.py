"""`python -m bench`: races our sampling and DPO against other tools', and writes BENCHMARKS.md.

Takes minutes and wants the machine to itself. `--quick` runs it in miniature, to see that it works:
its numbers mean nothing, and it writes a file only where `--out` says so.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import dpo_race, sampling_race
from bench.floor import sgemm_rate
from bench.report import Result, document, table, tried
from bench.shapes import CANDIDATES, JUDGE, PAIRS, PROMPT, RESPONSE, TINY, Workload
from llama.files import replace_file

SEED = 0


@dataclass(frozen=True)
class Program:
    """How much is raced."""

    workloads: Sequence[Workload]
    prompts_at_once: Sequence[int]  # the opponent's batch sizes
    pairs: int
    pairs_at_once: Sequence[int]
    rounds: int


FULL = Program((JUDGE, CANDIDATES), (8, 16, 32, 64), PAIRS, (4, 8, 16), 3)
FEW = tuple(replace(workload, prompts=4) for workload in FULL.workloads)
QUICK = Program(FEW, (2, 4), 16, (8, 16), 1)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in miniature")
    parser.add_argument("--threads", type=int, help="of torch, on both sides (torch's own choice)")
    parser.add_argument("--out", type=Path, help="file to write (BENCHMARKS.md, if not --quick)")
    given = parser.parse_args(arguments)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads is {given.threads}; it must be 1 or more")
    program, out = (QUICK, given.out) if given.quick else (FULL, given.out or Path("BENCHMARKS.md"))
    if given.threads:
        torch.set_num_threads(given.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rate, results = sgemm_rate(), []
    for result in races(program):
        results.append(result)
        print(f"{table([result], rate)}\n\n{tried([result])}\n", flush=True)
    text = document(
        results,
        sgemm_rate=rate,
        command=shlex.join(["python", "-m", "bench", *arguments]),
        model=f"{TINY.parameter_count / 1e6:.1f}M, width {TINY.dim}, "
        f"{TINY.n_layers} layers, {TINY.n_heads} heads, vocabulary {TINY.vocab_size}",
        rounds=program.rounds,
        rules=[str(module.__doc__).strip() for module in (sampling_race, dpo_race)],
    )
    if out is not None:
        try:
            replace_file(out, text.encode())
        except OSError as error:
            print(f"error: {out} could not be written: {error}", file=sys.stderr)
            return 2
        print(f"complete: {out}")
    return 0


def races(program: Program) -> Iterator[Result]:
    """Each race in turn."""
    for workload in program.workloads:
        outcome = sampling_race.sampling_race(
            workload, program.prompts_at_once, program.rounds, SEED
        )
        name = f"{workload.name}: {workload.prompts} prompts of {workload.shortest} to "
        name += f"{workload.longest} tokens, {workload.n} samples each"
        yield Result(name, "tokens", "`transformers` generate", *outcome)
    outcome = dpo_race.dpo_race(program.pairs, program.pairs_at_once, program.rounds, SEED)
    name = "DPO: prompts of {} to {} tokens, answers of {} to {}".format(*PROMPT, *RESPONSE)
    yield Result(f"{name}, steps of {dpo_race.BATCH}", "pairs", "TRL's DPOTrainer", *outcome)


if __name__ == "__main__":
    sys.exit(main())
