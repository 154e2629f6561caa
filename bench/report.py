"""The races as a table, and BENCHMARKS.md around it. Knows no model."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.race import Race

HEADER = (
    "workload", "count", "ours", "theirs", "their best setting", "ours / theirs", "floor",
    "ours of the floor",
)  # fmt: skip

PACKAGES = {  # and what they are imported as
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "llama-cpp-python": "llama_cpp",
}

TEXT = """# Benchmarks

What `make bench` wrote: this project's code and other people's, one after the other in turns, in
one process, on the same weights, rows and threads. Absolute numbers belong to the machine; the
ratios are what counts.

- Command: `{command}`
- Machine: {machine}; threads: {threads}
- Versions: Python {python}, {versions}
- Date: {day}
- Floor: the least arithmetic of the workload, each prompt read once, at {gflops:.1f} GFLOP/s, which
  an fp32 matrix product reached in the same run

The models have random weights. The embedded world's shape, where no other is named: {models[0]};
and two larger ones, {models[1]}; {models[2]}.

{table}

Rates are per second, each the best of several runs, which took turns. All of them, in that order,
ours / theirs:

{turns}

The first run of each of the opponent's settings; the best one took part in the turns:

{tried}

## How they race

{rules}

## Elsewhere

Loading in the shape of 7B: [bench/loading.md](bench/loading.md). Memory against its plan:
[bench/memory.md](bench/memory.md); of DPO against TRL's:
[bench/training_memory.md](bench/training_memory.md). On a GPU, at the shapes of 7B and 13B (`make
bench-gpu`): sampling [bench/gpu.md](bench/gpu.md), training
[bench/gpu_training.md](bench/gpu_training.md), the loop's stages
[bench/gpu_stages.md](bench/gpu_stages.md).
"""


@dataclass(frozen=True)
class Result:
    """A race, with the rate that its floor would allow."""

    name: str
    unit: str  # tokens or pairs
    opponent: str
    race: Race
    operations: int

    def cells(self, sgemm_rate: float) -> tuple[str, ...]:
        """A row of the table."""
        ours, theirs = self.race.ours, self.race.theirs
        floor = ours.count * sgemm_rate / self.operations
        count = str(ours.count) if ours.count == theirs.count else f"{ours.count}/{theirs.count}"
        return (
            f"{self.name} against {self.opponent}",
            f"{count} {self.unit}",
            number(ours.rate),
            number(theirs.rate),
            self.race.setting,
            f"**{self.race.ratio:.2f} ×**",
            number(floor),
            f"{ours.rate / floor:.0%}",
        )


def table(results: Sequence[Result], sgemm_rate: float) -> str:
    """Markdown, a row a race."""
    rows = [HEADER, ("---",) * len(HEADER), *(result.cells(sgemm_rate) for result in results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(rate: float) -> str:
    """`12,345` or `12.3`."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def tried(results: Sequence[Result]) -> str:
    """Markdown, a line a race: what each of the opponent's settings reached."""
    return "\n".join(
        f"- {result.name}: "
        + ", ".join(f"{setting} {number(run.rate)}" for setting, run in result.race.tried.items())
        for result in results
    )


def turns(results: Sequence[Result]) -> str:
    """Markdown, a line a race: all runs, so that one sees how steady the machine was."""
    lines = []
    for result in results:
        both = zip(result.race.our_runs, result.race.their_runs)
        runs = (f"{number(ours.rate)} / {number(theirs.rate)}" for ours, theirs in both)
        lines.append(f"- {result.name} against {result.opponent}: {', '.join(runs)}")
    return "\n".join(lines)


def document(
    results: Sequence[Result],
    *,
    sgemm_rate: float,
    command: str,
    models: Sequence[str],
    rules: Sequence[str],
) -> str:
    """The whole of BENCHMARKS.md; rules: how each race is run, in Markdown."""
    return TEXT.format(
        command=command,
        machine=machine(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        versions=", ".join(
            f"{name} {version(name)}" for name in PACKAGES if find_spec(PACKAGES[name])
        ),
        day=date.today().isoformat(),
        gflops=sgemm_rate / 1e9,
        models=models,
        table=table(results, sgemm_rate),
        turns=turns(results),
        tried=tried(results),
        rules="\n\n".join(rules),
    )


def machine() -> str:
    """The processor's name and the number of its cores that are ours."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
