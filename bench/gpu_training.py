"""`python -m bench.gpu_training`: SFT and DPO at the shapes of 7B and 13B on one GPU.

Weights are random: fp32 masters that are computed with in bf16, or adapters beside frozen bf16
weights. Blocks are compiled, and compute all but matrix products and attention again. MFU is what a
step's tokens take by 6 N + 12 L C T operations each (N weights without the table of the embeddings,
L layers, C width, T tokens of a line; what is computed again is not counted), over seconds times
the rate at which this card multiplied large bf16 matrices in the same run. Of frozen weights no
gradients are computed: 4 N. The first step, which compiles, is not timed.
`--miniature` runs it on the CPU with tiny shapes, to see that it works.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median

import torch

from bench.gpu import Card, measure, parsed
from bench.report import number
from bench.shapes import TINY
from dpo import Pair, Row, TrainSettings
from dpo.batches import Dealer
from dpo.descent import Descent
from dpo.lines import pair_line, row_line
from dpo.logprobs import CHUNK_LOGITS
from dpo.objectives import DPO, SFT
from dpo.speed import operations
from llama import PRESETS, Llama, LlamaConfig
from llama.files import replace_file
from llama.lora import attach, begin
from llama.parallel import Group, shard, start
from llama.plan import Need, Training, training

SEED, WARMING, STEPS = 0, 1, 3
HEADER = (
    "| training | tokens a step | tokens/s | MFU | most memory | planned | planned / measured |"
)


@dataclass(frozen=True)
class Task:
    """A training of lines of T tokens, `at_once` in a forward pass, `lines` in a step."""

    name: str
    config: LlamaConfig
    pairs: bool = False  # a prompt and two answers, each a third of a line
    T: int = 4096
    at_once: int = 1
    lines: int = 4
    recompute: str = "selective"
    moments: str = "float32"
    lora_rank: int = 0
    compiled: bool = True

    @property
    def settings(self) -> TrainSettings:
        """The trainer's."""
        return TrainSettings(
            1e-6,
            batch_size=self.lines,
            dropout=0.0,
            micro_tokens=self.at_once * self.T,
            recompute=self.recompute,
            moments=self.moments,
            lora_rank=self.lora_rank,
            compile=self.compiled,
        )


SEVEN, THIRTEEN = (replace(PRESETS[name], max_seq_len=4096) for name in ("7B", "13B"))
TASKS = (
    Task("7B, SFT, bf16 moments", SEVEN, at_once=4, lines=8, moments="bfloat16"),
    Task("7B, DPO, bf16 moments", SEVEN, True, at_once=3, lines=6, moments="bfloat16"),
    Task("7B, SFT, adapters of rank 16", SEVEN, at_once=4, lines=8, lora_rank=16),
    Task("13B, DPO, adapters of rank 16", THIRTEEN, True, at_once=2, lines=8, lora_rank=16),
)
LITTLE = (
    Task("tiny, SFT", TINY, T=60, at_once=2, recompute="none", compiled=False),
    Task("tiny, DPO, adapters of rank 4", TINY, True, T=60, lora_rank=4, compiled=False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    given = parsed("python -m bench.gpu_training", __doc__, arguments)
    if given is None:
        return 2
    group = start()
    if given.miniature:
        group = replace(group, device=torch.device("cpu"))
    dtype = torch.float32 if given.miniature else torch.bfloat16
    card = measure(group.device, dtype, 256 if given.miniature else 8192)
    lines = [
        f"## Training on {card.name}\n",
        f"`python -m bench.gpu_training`, torch {torch.__version__}: it multiplies at "
        f"{card.rate / 1e12:.1f} TFLOP/s. The median of {STEPS} steps:\n",
        HEADER,
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in LITTLE if given.miniature else TASKS:
        lines.append(row(task, card, group, dtype))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if given.out:
        replace_file(given.out, text.encode())
    group.stop()
    return 0


def row(task: Task, card: Card, group: Group, dtype: torch.dtype) -> str:
    """A row of the table."""
    begin_afresh(group.device)
    seconds = median(step_seconds(task, group, dtype))
    tokens = task.lines * task.T
    mfu = tokens * operations_a_token(task) / (seconds * card.rate)
    memory = memory_cells(most_memory(group.device), planned_bytes(task, dtype))
    cells = (task.name, f"{tokens:,}", number(tokens / seconds), f"{mfu:.0%}", *memory)
    return f"| {' | '.join(cells)} |"


def begin_afresh(device: torch.device) -> None:
    """Gives back what nobody holds; from here on `most_memory` counts."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def most_memory(device: torch.device) -> int | None:
    """Bytes that tensors took at most since then; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def memory_cells(most: int | None, planned: int | None) -> tuple[str, str, str]:
    """Of a table: bytes measured, bytes planned, and these through those."""
    share = f"{planned / most:.2f}" if planned and most else "–"
    return _gigabytes(most), _gigabytes(planned), share


def operations_a_token(task: Task) -> float:
    """By the formula above."""
    return operations(task.config, [task.T], frozen=task.lora_rank > 0) / task.T


def step_seconds(task: Task, group: Group, dtype: torch.dtype) -> list[float]:
    """Of each timed step."""
    model = made(task, group, dtype)
    objective = objective_of(task)
    settings = replace(task.settings, max_steps=WARMING + STEPS)
    descent = Descent(model, objective, settings, seed=SEED, group=group, directory=None)
    ends: list[float] = []

    def note(step: int, steps: int) -> None:  # a step has waited for the card: it read its loss
        ends.append(time.perf_counter())

    descent.run({}, task.name, note)
    timed = ends[WARMING - 1 :]
    return [after - before for before, after in pairwise(timed)]


def objective_of(task: Task) -> SFT | DPO:
    """Random lines for all steps; the reference's log-probabilities are made up."""
    count, longest = task.lines * (WARMING + STEPS), task.config.max_seq_len
    if not task.pairs:
        line = partial(row_line, longest=longest)
        return SFT(Dealer(rows_of(task, count), line, task.lines, SEED), task.settings)
    dealer = Dealer(pairs_of(task, count), partial(pair_line, longest=longest), task.lines, SEED)
    return DPO(dealer, (torch.zeros(count), torch.zeros(count)), None, task.settings)


def rows_of(task: Task, count: int) -> list[Row]:
    """Random ones, of a line each."""
    is_response = [False] + [True] * (task.T - 1)
    return [Row(ids, is_response) for ids in _lines(task, count)]


def pairs_of(task: Task, count: int) -> list[Pair]:
    """Random ones, of a line each."""
    third = task.T // 3
    mask = [False] * (task.T - 2 * third) + [True] * third
    return [
        Pair(Row(ids[:-third], mask), Row(ids[: -2 * third] + ids[-third:], mask))
        for ids in _lines(task, count)
    ]


def _lines(task: Task, count: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(SEED)
    return torch.randint(3, task.config.vocab_size, (count, task.T), generator=draw).tolist()


def made(task: Task, group: Group, dtype: torch.dtype) -> Llama:
    """A model of the task's shape, its weights drawn where they are used."""
    stored = dtype if task.lora_rank else torch.float32
    with torch.device("meta"):
        model = Llama(task.config).to(stored)
    if task.lora_rank:
        assert task.settings.lora is not None
        attach(model, task.settings.lora)
    model = model.to_empty(device=group.device)
    torch.manual_seed(SEED)
    model.init_weights()
    begin(model, "bench")
    shard(model, group, dtype)
    return model


def planned_bytes(task: Task, dtype: torch.dtype) -> int:
    """What the plan says that it takes."""
    return plan(task, dtype).total


def plan(task: Task, dtype: torch.dtype) -> Need:
    """The same by its parts."""
    tokens = task.at_once * task.T
    how = Training(
        ranks=1,
        tokens=tokens,
        attended=tokens * 4 // 3 if task.pairs else tokens,
        scored=tokens * 2 // 3 if task.pairs else tokens,
        width=dtype.itemsize,
        dropout=False,
        recompute=task.recompute,
        accumulates=task.lines > task.at_once,
        logits_at_once=CHUNK_LOGITS,
        moment=getattr(torch, task.moments).itemsize,
        lora=task.settings.lora,
    )
    return training(task.config, how)


def _gigabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e9:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
