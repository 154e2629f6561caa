"""`python -m bench`: races our sampling and DPO against other tools', and writes BENCHMARKS.md.

Takes fifty minutes and wants the machine to itself. `--quick` runs it in miniature, to see
that it works: its numbers mean nothing, and it writes a file only where `--out` says so.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import dpo_race, hide_gpus, llamacpp, sampling_race, sft_race
from bench.floor import sgemm_rate
from bench.options import positive
from bench.report import Result, document, table, tried, turns
from bench.shapes import (
    CANDIDATES,
    JUDGE,
    LONG_CANDIDATES,
    LONG_JUDGE,
    MEDIUM,
    MIDDLE,
    PROMPT,
    RAGGED,
    RESPONSE,
    TINY,
    Workload,
)
from llama import LlamaConfig
from llama.files import require_place
from loop.files import write

SEED = 0


@dataclass(frozen=True)
class Against:
    """What a workload's opponents may try, and how often each runs."""

    batches: Sequence[int]  # in prompts: `transformers`
    settings: Sequence[llamacpp.Setting]
    rounds: int


@dataclass(frozen=True)
class Training:
    """A model to train, on so many rows or pairs, and how many of them theirs takes at once."""

    config: LlamaConfig
    rows: int
    at_once: Sequence[int]
    rounds: int


@dataclass(frozen=True)
class Program:
    """How much is raced."""

    workloads: Mapping[Workload, Against]
    trainings: Mapping[str, Training]  # by the model's name in the table


RULES = (sampling_race, llamacpp, dpo_race, sft_race)  # each says how it races
MANY = Against((8, 16, 32, 64), llamacpp.SETTINGS, 5)  # a core may be slow for a while
SLOW = Against((4, 8), [one for one in llamacpp.SETTINGS if not one.flash], 2)  # a minute a run
WORKLOADS = {JUDGE: MANY, CANDIDATES: MANY, LONG_JUDGE: SLOW, LONG_CANDIDATES: SLOW}
TRAININGS = {"": Training(TINY, 960, (4, 8, 16), 5), "26M ": Training(MIDDLE, 128, (4, 8), 3)}
FULL = Program(WORKLOADS, TRAININGS)
LITTLE = Against((2, 4), llamacpp.SETTINGS[:1], 1)
FEW = {replace(workload, prompts=4): LITTLE for workload in (JUDGE, CANDIDATES)}
QUICK = Program(FEW, {"": Training(TINY, 16, (8, 16), 1)})


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    hide_gpus()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in miniature")
    parser.add_argument(
        "--only", choices=("sampling", "training"), help="these races, into --out if it is given"
    )
    parser.add_argument("--threads", type=positive, help="torch's, of both sides (its own choice)")
    parser.add_argument("--out", type=Path, help="file to write (BENCHMARKS.md, if not --quick)")
    given = parser.parse_args(arguments)
    program, out = (QUICK, given.out) if given.quick else (FULL, given.out or Path("BENCHMARKS.md"))
    if given.only:
        program, out = only(program, given.only), given.out
    try:
        if out is not None:
            require_place(out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.threads:
        torch.set_num_threads(given.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if absent := ", ".join(llamacpp.missing()):
        print(f"llama.cpp is not raced: {absent} not installed ({llamacpp.INSTALL})")
    rate, results = sgemm_rate(), []
    for result in races(program):
        results.append(result)
        rate = max(rate, sgemm_rate())  # the machine may have been slowed down at one moment
        print(f"{table([result], rate)}\n\n{turns([result])}\n{tried([result])}\n", flush=True)
    text = document(
        results,
        sgemm_rate=rate,
        command=shlex.join(["python", "-m", "bench", *arguments]),
        models=[shape(TINY), shape(MIDDLE), shape(MEDIUM)],
        rules=[str(module.__doc__).strip() for module in RULES],
    )
    if out is not None:
        try:
            write(out, text.encode())
        except OSError as error:
            print(f"error: {out} could not be written: {error}", file=sys.stderr)
            return 2
        print(f"complete: {out}")
    return 0


def only(program: Program, which: str) -> Program:
    """The part of it that is named."""
    if which == "training":
        return replace(program, workloads={})
    return replace(program, trainings={})


def races(program: Program) -> Iterator[Result]:
    """Each race in turn."""
    for workload, against in program.workloads.items():
        name = f"{workload.name}: {workload.prompts} prompts of {workload.shortest} to "
        name += f"{workload.longest} tokens, {workload.template} of them alike, "
        name += f"{workload.n} samples each"
        rounds = against.rounds
        outcome = sampling_race.sampling_race(workload, against.batches, rounds, SEED)
        yield Result(name, "tokens", "`transformers` generate", *outcome)
        if not llamacpp.missing():
            outcome = sampling_race.llamacpp_race(workload, against.settings, rounds, SEED)
            yield Result(name, "tokens", "llama.cpp", *outcome)
        outcome = sampling_race.grouping_race(workload, rounds, SEED)
        yield Result(name, "tokens", "grouping off", *outcome)
    for model, training in program.trainings.items():
        how = training.config, training.rows, training.at_once, training.rounds, SEED
        name = "{}DPO: prompts of {} to {} tokens, answers of {} to {}, steps of {}"
        named = name.format(model, *PROMPT, *RESPONSE, dpo_race.BATCH)
        yield Result(named, "pairs", "TRL's DPOTrainer", *dpo_race.dpo_race(*how))
        name = "{}SFT: prompts and responses of {} to {} tokens, steps of {}"
        named = name.format(model, *RAGGED, sft_race.BATCH)
        yield Result(named, "tokens", "a loop around `transformers`", *sft_race.sft_race(*how))


def shape(config: LlamaConfig) -> str:
    """A model in words."""
    return (
        f"{config.parameter_count / 1e6:.1f}M: width {config.dim}, {config.n_layers} layers, "
        f"{config.n_heads} heads, vocabulary {config.vocab_size}"
    )


if __name__ == "__main__":
    sys.exit(main())
