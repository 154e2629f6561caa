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
from llama.container import free_memory
from llama.parallel import Group
from llama.plan import Need, Sampling, Training, sampling, slots_for, training
from llama.split import parameter_count, sizes
from loop.settings import Settings

GIB = 2**30
OURS = 0.9  # of a card: the rest is for CUDA itself, the buffers of NCCL, fragments
CARDS = 8  # of a machine, where torchrun does not say how many
MOST_RANKS = 4096
RUBRIC = 512  # tokens of the judge's instructions, about


def needs(
    settings: Settings, config: LlamaConfig, ranks: int, memory: float | None = None
) -> dict[str, Need]:
    """Each phase's need of one of so many ranks, for the longest texts that the settings allow.

    memory: of a rank, on which depends how many of them sample from one model together.
    """
    team = team_size(config, width(settings), ranks, memory, settings.machine.sample_tp)
    return {
        "SFT": training(config, train_size(settings, settings.sft, config, ranks, pairs=False)),
        "DPO": training(config, train_size(settings, settings.dpo, config, ranks, pairs=True)),
        "sampling": max(
            (sampling(config, size) for size in sampling_sizes(settings, config, team)),
            key=lambda need: need.total,
        ),
    }


def train_size(
    settings: Settings, how: TrainSettings, config: LlamaConfig, ranks: int, pairs: bool
) -> Training:
    """A step of rows as long as the model reads them; a pair's prompt and answers alike long.

    Lines are padded: packed, as on a CPU, attention sees no token twice, which takes a little less.
    """
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
        lora=how.lora,
    )


def ranks_of_a_copy(settings: Settings, ranks: int) -> int:
    """How many of the ranks hold the weights together in training."""
    return ranks_of_a_machine(ranks) if settings.machine.shard == "machine" else ranks


def ranks_of_a_machine(ranks: int) -> int:
    """As torchrun says; else as many as machines usually have cards."""
    return min(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", CARDS)))


def team_size(
    config: LlamaConfig, width: int, ranks: int, memory: float | None, asked: int | None
) -> int:
    """How many ranks hold the model together while they sample: as many as are asked for.

    Otherwise the fewest among which the weights take at most half of each one's memory, for keys
    and values want as much; all of a machine's where even these are too few. Memory unknown: one.
    """
    if asked is not None or memory is None:
        return asked or 1
    able = sizes(config, ranks_of_a_machine(ranks))
    enough = (n for n in able if parameter_count(config, n) * width <= memory / 2)
    return next(enough, able[-1])


def width(settings: Settings) -> int:
    """Bytes of a number in the computation."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype.itemsize


def sampling_sizes(settings: Settings, config: LlamaConfig, team: int = 1) -> Iterator[Sampling]:
    """Answers to prompts, and judgements of answers, as long as they may get."""
    asked, answered = settings.prompts.max_new_tokens, settings.responses.max_new_tokens
    judged = RUBRIC + asked + answered
    for prompt, new, n in (
        (asked, answered, settings.responses.n),
        (judged, settings.judging.max_new_tokens, settings.judging.k),
    ):
        new = min(new, config.max_seq_len)
        prompt = min(prompt, config.max_seq_len - new)
        yield Sampling(width(settings), _slots(settings, config), prompt, new, n, team)


def in_a_line(found: Mapping[str, Need], memory: float | None, team: int = 1) -> str:
    """For the start of a run; team: ranks that sample from one model together."""
    parts = ", ".join(f"{name} {need.total / GIB:.2f}" for name, need in found.items())
    parts += f" in teams of {team} ranks" if team > 1 else ""
    room = f" of {memory / GIB:.1f}" if memory else ""
    return f"memory of a rank, GiB, at most: {parts}{room}"


def table(settings: Settings, config: LlamaConfig, ranks: int, memory: float) -> Iterator[str]:
    """A line a phase: the sum, whether it fits, what it is made of. Sampling fits if some samples
    do, side by side.
    """
    team = team_size(config, width(settings), ranks, memory, settings.machine.sample_tp)
    slots = slots_that_fit(settings, config, ranks, memory)
    some = _with_slots(settings, slots) if slots else settings
    for name, need in needs(some, config, ranks, memory).items():
        parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in need.parts.items() if size)
        fits = "fits" if need.total <= OURS * memory else "DOES NOT FIT"
        if name == "sampling":
            fits += f", a model on {team} ranks" if team > 1 else ""
            fits += f", {slots} samples at a time" if slots else ""
        yield f"{name:9}{need.total / GIB:9.2f} GiB of {memory / GIB:.1f}, {fits}: {parts}"


def advice(settings: Settings, config: LlamaConfig, ranks: int, memory: float) -> Iterator[str]:
    """What to change, for each phase that does not fit: the first of some changes that helps."""
    found = needs(settings, config, ranks, memory)
    for name, part in (("SFT", "sft"), ("DPO", "dpo")):
        if found[name].total > OURS * memory:
            yield f"{name}: {_training_advice(settings, config, ranks, memory, part)}"
    if found["sampling"].total > OURS * memory:
        yield f"sampling: {_sampling_advice(settings, config, ranks, memory)}"


def slots_that_fit(settings: Settings, config: LlamaConfig, ranks: int, memory: float) -> int:
    """Samples side by side: as many as are asked for, or half, a quarter, …; 0 if not even one."""
    slots = _slots(settings, config)
    while slots:
        some = _with_slots(settings, slots)
        if needs(some, config, ranks, memory)["sampling"].total <= OURS * memory:
            break
        slots //= 2
    return slots


def _slots(settings: Settings, config: LlamaConfig) -> int:
    return settings.machine.slots or slots_for(config, width(settings))


def _with_slots(settings: Settings, slots: int) -> Settings:
    return replace(settings, machine=replace(settings.machine, slots=slots))


def _sampling_advice(settings: Settings, config: LlamaConfig, ranks: int, memory: float) -> str:
    if slots := slots_that_fit(settings, config, ranks, memory):
        return (
            f"{slots} of {_slots(settings, config)} samples fit side by side, if all are as long "
            f"as can be; a GPU takes what fits by itself, on a CPU --set machine.slots={slots}"
        )
    for team in sizes(config, config.n_heads):
        if parameter_count(config, team) * width(settings) <= memory / 2:
            return f"--set machine.sample_tp={team}, on machines of {team} ranks or a multiple"
    return "no number of ranks can hold the model together"


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


def least_memory(group: Group) -> float | None:
    """Of the rank that has the least; None where one does not know. For all ranks, which so choose
    alike.
    """
    found = group.gather_rows([memory_of_a_rank(group)])
    return None if None in found else min(float(memory) for memory in found if memory)


def memory_of_a_rank(group: Group) -> float | None:
    """Bytes: of this rank's card, or its part of what is free of the machine's memory and of its
    container's; None if unknown."""
    if group.device.type == "cuda":
        return float(torch.cuda.get_device_properties(group.device).total_memory)
    file = Path("/proc/meminfo")
    if not file.exists():
        return None
    free = next(line for line in file.read_text().splitlines() if line.startswith("MemAvailable"))
    found, allowed = int(free.split()[1]) * 1024, free_memory()
    here = found if allowed is None else min(found, allowed)
    return here / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
