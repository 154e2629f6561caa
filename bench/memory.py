"""`python -m bench.memory`: what the memory plan says against what a process really takes.

Trains (two steps of two micro-batches each) and samples, each time in a fresh process, in fp32 on
the CPU: the tiny model in seconds, and one of 134M. With two ranks, it is the first one's memory.
Measured is the most resident memory above what the process had before it made the model, having
done the same with a very small one. The processes give freed blocks back at once
(MALLOC_MMAP_THRESHOLD_): by default glibc keeps those below 32 MB, in fragments, which a tiny model
has many of, and its process may then hold two or three times what it uses.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from datetime import date
from pathlib import Path

import torch

from bench import hide_gpus
from bench.options import place
from bench.ranks import run_ranks
from bench.report import machine
from bench.shapes import MEDIUM, TINY
from dpo import Pair, Row, TrainSettings, train_dpo, train_sft
from dpo.logprobs import CHUNK_LOGITS
from llama import Llama, LlamaConfig
from llama.files import replace_file
from llama.lora import attach
from llama.parallel import Group, shard, start
from llama.plan import Need, Sampling, Training, sampling, training
from sampling import Decoding, Request
from sampling.engine import generate

MODELS = {"tiny": TINY, "134M": MEDIUM}
SMALL = LlamaConfig(vocab_size=64, dim=8, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=8)
TOKENS = {"tiny": (4096, 512), "134M": (1024, 256)}  # of a forward pass, and of a row
SLOTS = {"tiny": (256, 64, 128), "134M": (32, 128, 64)}  # slots, tokens of a prompt, new tokens
N = 4  # samples of a prompt
PHASES = (
    "SFT", "SFT, recompute", "SFT, two ranks", "SFT, adapters", "DPO", "DPO, adapters", "sampling",
)  # fmt: skip
RANK = 8  # of the adapters
TOLERANCE = 0.1
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
FP32 = 4

TEXT = """## The memory plan

What `{command}` measured, on {machine}, torch {torch}, {day}, in MB:

| model | phase | planned | measured | planned / measured |
| --- | --- | --- | --- | --- |
{rows}

{rules}
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a plan is off by more than a tenth."""
    hide_gpus()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="one of them alone")
    parser.add_argument("--phase", choices=PHASES, help="one of them alone")
    parser.add_argument("--out", type=place, help="file to write the table to")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.here:
        print(*in_this_process(given.model, given.phase))
        return 0
    models = [given.model] if given.model else list(MODELS)
    phases = [given.phase] if given.phase else PHASES
    rows, good = [], True
    for model, phase in ((model, phase) for model in models for phase in phases):
        planned, measured = in_fresh_processes(model, phase)
        good &= abs(planned / measured - 1) <= TOLERANCE
        cells = (model, phase, f"{planned / 1e6:,.1f}", f"{measured / 1e6:,.1f}")
        rows.append(f"| {' | '.join(cells)} | {planned / measured:.3f} |")
        print(rows[-1], flush=True)
    text = TEXT.format(
        command=" ".join(["python -m bench.memory", *arguments]), machine=machine(),
        torch=torch.__version__, day=date.today().isoformat(), rows="\n".join(rows),
        rules=str(__doc__).partition("\n\n")[2].strip(),
    )  # fmt: skip
    if given.out:
        replace_file(given.out, text.encode())
    return int(not good)


def in_fresh_processes(model: str, phase: str) -> tuple[int, int]:
    """(planned, measured) bytes."""
    words, ranks = ["--here", "--model", model, "--phase", phase], 1 + phase.endswith("two ranks")
    planned, measured = map(int, run_ranks("bench.memory", words, ranks, GIVE_BACK)[0].split())
    return planned, measured


def in_this_process(name: str, phase: str) -> tuple[int, int]:
    """(planned, measured) bytes; to be asked of a process once."""
    group = start()
    work(SMALL, (64, 32), (8, 8, 8), phase, group)  # takes what torch takes once
    gc.collect()
    before = memory("VmRSS")
    need = work(MODELS[name], TOKENS[name], SLOTS[name], phase, group)
    group.stop()
    return need.total, memory("VmHWM") - before


def work(
    config: LlamaConfig,
    tokens: tuple[int, int],
    slots: tuple[int, int, int],
    phase: str,
    group: Group,
) -> Need:
    """The phase from beginning to end; the plan for it."""
    draw = random.Random(0)
    if phase == "sampling":
        return sample(config, *slots, draw)
    return train(config, *tokens, phase, draw, group)


def train(
    config: LlamaConfig, tokens: int, length: int, phase: str, draw: random.Random, group: Group
) -> Need:
    """Two steps of two micro-batches a rank; the plan for them."""
    pairs, recompute, ranks = (
        phase.startswith("DPO"),
        ("none", "full")[phase.endswith("recompute")],
        group.world_size,
    )
    settings = TrainSettings(
        1e-4, batch_size=2 * ranks * tokens // length, micro_tokens=tokens, dropout=0.0,
        recompute=recompute, max_steps=2, lora_rank=RANK * phase.endswith("adapters"),
    )  # fmt: skip
    third, count = length // 3, 2 * settings.batch_size
    model = Llama(config)
    model.init_weights()
    if settings.lora:
        attach(model, settings.lora)
    shard(model, group)
    if pairs:
        two = [ids(2 * third + third, config, draw) for _ in range(count)]
        data = [pair(three, third) for three in two]
        train_dpo(model, data, settings, seed=0, group=group, processes=1)
    else:
        row = Row(ids(length, config, draw), [False] + [True] * (length - 1))
        rows = [row] * count
        train_sft(model, rows, settings, seed=0, group=group, processes=1)
    scored = tokens * 2 // 3 if pairs else tokens
    how = Training(  # packed lines: attention sees no more tokens than there are
        ranks, tokens, tokens, scored, FP32, False, recompute, True, CHUNK_LOGITS,
        lora=settings.lora,
    )  # fmt: skip
    return training(config, how)


def sample(config: LlamaConfig, slots: int, prompt: int, new: int, draw: random.Random) -> Need:
    """All slots filled once, with samples that do not end by themselves; the plan for them."""
    model = Llama(config)
    model.init_weights()
    requests = [Request(str(i), ids(prompt, config, draw), N) for i in range(slots // N)]
    generate(model, requests, Decoding(1.0, 0.9, new), seed=0, slots=slots, processes=1)
    return sampling(config, Sampling(FP32, slots, prompt, new, N))


def pair(three: list[int], third: int) -> Pair:
    """A prompt and two answers, a third of the tokens each."""
    prompt, mask = three[:third], [False] * third + [True] * third
    return Pair(Row(prompt + three[third:-third], mask), Row(prompt + three[-third:], mask))


def ids(count: int, config: LlamaConfig, draw: random.Random) -> list[int]:
    """Random tokens."""
    return [draw.randrange(3, config.vocab_size) for _ in range(count)]


def memory(what: str) -> int:
    """Bytes: VmRSS, what is resident now; VmHWM, the most there ever was."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
