"""What the settings of a run need of a rank's memory, in words: at the start of a run, and for
`python -m llama plan`. Knows how the steps use the model, and nothing of what is in it.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from dpo.logprobs import CHUNK_LOGITS
from dpo.settings import TrainSettings
from llama.config import LlamaConfig
from llama.parallel import Group
from llama.plan import Need, Sampling, Training, sampling, training
from loop.settings import Settings

GIB = 2**30
OURS = 0.9  # of a card: the rest is for CUDA itself, the buffers of NCCL, fragments
CARDS = 8  # of a machine, where torchrun does not say how many
MOST_RANKS = 4096
RUBRIC = 512  # tokens of the judge's instructions, about


def needs(settings: Settings, config: LlamaConfig, ranks: int) -> dict[str, Need]:
    """Each phase's need of one of so many ranks, for the longest texts that the settings allow."""
    return {
        "SFT": training(config, train_size(settings, settings.sft, config, ranks, pairs=False)),
        "DPO": training(config, train_size(settings, settings.dpo, config, ranks, pairs=True)),
        "sampling": max(
            (sampling(config, size) for size in sampling_sizes(settings, config)),
            key=lambda need: need.total,
        ),
    }


def train_size(
    settings: Settings, how: TrainSettings, config: LlamaConfig, ranks: int, pairs: bool
) -> Training:
    """A step of rows as long as the model reads them; a pair's prompt and answers alike long."""
    longest = config.max_seq_len * 3 // 2 if pairs else config.max_seq_len
    lines = -(-how.batch_size // ranks)
    tokens = max(longest, min(how.micro_tokens, lines * longest))
    return Training(
        ranks=ranks_of_a_copy(settings, ranks),
        tokens=tokens,
        attended=tokens * 4 // 3 if pairs else tokens,
        scored=tokens * 2 // 3 if pairs else tokens,
        width=width(settings),
        dropout=how.dropout > 0,
        recompute=how.recompute,
        accumulates=lines * longest > tokens or bool(pairs and how.replay_weight),
        logits_at_once=CHUNK_LOGITS,
        moment=getattr(torch, how.moments).itemsize,
        offload=settings.machine.offload,
    )


def ranks_of_a_copy(settings: Settings, ranks: int) -> int:
    """How many of the ranks hold the weights together in training."""
    machine = int(os.environ.get("LOCAL_WORLD_SIZE", CARDS))
    return min(ranks, machine) if settings.machine.shard == "machine" else ranks


def width(settings: Settings) -> int:
    """Bytes of a number in the computation."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype.itemsize


def sampling_sizes(settings: Settings, config: LlamaConfig) -> Iterator[Sampling]:
    """Answers to prompts, and judgements of answers, as long as they may get."""
    asked, answered = settings.prompts.max_new_tokens, settings.responses.max_new_tokens
    judged = RUBRIC + asked + answered
    for prompt, new, n in (
        (asked, answered, settings.responses.n),
        (judged, settings.judging.max_new_tokens, settings.judging.k),
    ):
        new = min(new, config.max_seq_len)
        prompt = min(prompt, config.max_seq_len - new)
        yield Sampling(width(settings), settings.machine.slots, prompt, new, n)


def in_a_line(found: Mapping[str, Need], memory: float | None) -> str:
    """For the start of a run."""
    parts = ", ".join(f"{name} {need.total / GIB:.2f}" for name, need in found.items())
    room = f" of {memory / GIB:.1f}" if memory else ""
    return f"memory of a rank, GiB, at most: {parts}{room}"


def table(settings: Settings, config: LlamaConfig, ranks: int, memory: float) -> Iterator[str]:
    """A line a phase: the sum, whether it fits, what it is made of."""
    for name, need in needs(settings, config, ranks).items():
        parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in need.parts.items() if size)
        fits = "fits" if need.total <= OURS * memory else "DOES NOT FIT"
        yield f"{name:9}{need.total / GIB:9.2f} GiB of {memory / GIB:.1f}, {fits}: {parts}"


def advice(settings: Settings, config: LlamaConfig, ranks: int, memory: float) -> Iterator[str]:
    """What to change, for each phase that does not fit: the first of some changes that helps."""
    found = needs(settings, config, ranks)
    for name, part in (("SFT", "sft"), ("DPO", "dpo")):
        if found[name].total > OURS * memory:
            yield f"{name}: {_training_advice(settings, config, ranks, memory, part)}"
    if found["sampling"].total > OURS * memory:
        yield f"sampling: {_sampling_advice(settings, config, memory)}"


def _sampling_advice(settings: Settings, config: LlamaConfig, memory: float) -> str:
    slots = most = settings.machine.slots
    while slots and _sampling_total(settings, config, slots) > OURS * memory:
        slots //= 2
    if not slots:
        weights = config.parameter_count * width(settings) / GIB
        return f"a replica, with weights of {weights:.1f} GiB, is more than one rank can hold"
    return (
        f"{slots} of {most} samples fit side by side, if all are as long as can be; a GPU takes "
        f"what fits by itself, on a CPU --set machine.slots={slots}"
    )


def _sampling_total(settings: Settings, config: LlamaConfig, slots: int) -> int:
    fewer = replace(settings, machine=replace(settings.machine, slots=slots))
    return needs(fewer, config, 1)["sampling"].total


def _training_advice(
    settings: Settings, config: LlamaConfig, ranks: int, memory: float, part: str
) -> str:
    how, pairs = getattr(settings, part), part == "dpo"
    least = config.max_seq_len
    for more in (ranks * 2**power for power in range(MOST_RANKS.bit_length())):
        for changes in (
            {},
            {"recompute": "selective"},
            {"recompute": "full"},
            {"micro_tokens": least},
            {"recompute": "full", "micro_tokens": least},
        ):
            size = train_size(settings, replace(how, **changes), config, more, pairs)
            total = training(config, size).total
            if total <= OURS * memory:
                said = [f"--set {part}.{k}={str(v).lower()}" for k, v in changes.items()]
                said += [f"{more} ranks"] if more != ranks else []
                return f"{', '.join(said)}: then {total / GIB:.1f} GiB"
    return f"no number of ranks up to {more} makes it fit"


def memory_of_a_rank(group: Group) -> float | None:
    """Bytes: of this rank's card, or its part of what the machine has free; None if unknown."""
    if group.device.type == "cuda":
        return float(torch.cuda.get_device_properties(group.device).total_memory)
    file = Path("/proc/meminfo")
    if not file.exists():
        return None
    free = next(line for line in file.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(free.split()[1]) * 1024 / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
