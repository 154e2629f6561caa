"""A checkpoint directory ↔ a model: whichever layout it has, whole or cut across ranks.

Knows no text and no training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from llama.checkpoint import Checkpoint, Weights, unfilled
from llama.config import LlamaConfig
from llama.huggingface import read_hf, write_hf
from llama.lora import Lora, added_to, attach, merged, plain_state, silence
from llama.meta import read_meta
from llama.model import Llama
from llama.parallel import Group, full_tensor, local_part, local_rows, shard
from llama.shortage import naming_shortage
from llama.stored import Part
from llama.team import Team, TeamLlama
from llama.tokenizer import Tokenizer

TOGETHER = 8  # weights that are hashed at once: one thread needs a minute for 70 GB


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What the directory holds, checked before any weight is read: Hugging Face's layout or Meta's.

    Raises ValueError, naming file and tensor, for whatever is missing, left over, damaged, or no
    Llama 2.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return read_hf(path)
    if (path / "params.json").is_file():
        return read_meta(path)
    raise ValueError(
        f"{path} is no checkpoint directory: it has neither Hugging Face's config.json nor "
        "Meta's params.json"
    )


def load(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[Llama, Tokenizer]:
    """(model, tokenizer) of a checkpoint directory, in evaluation mode.

    Raises ValueError as `read_checkpoint` does.
    """
    checkpoint = read_checkpoint(path)
    tokenizer = open_tokenizer(checkpoint)
    model = _with_room(unfilled(checkpoint.config).to(dtype), device)
    _fill(model, checkpoint.weights)
    return model.eval(), tokenizer


def load_sharded(
    path: str | Path,
    group: Group,
    dtype: torch.dtype = torch.float32,
    masters: torch.dtype = torch.float32,
    lora: Lora | None = None,
) -> tuple[Llama, Tokenizer]:
    """`load` and `shard` in one, for models that one rank cannot hold: each reads its own rows.

    Weights are kept in `masters` and computed with in `dtype`. With adapters (`lora`) they are
    frozen, and kept in `dtype` too.
    """
    checkpoint = read_checkpoint(path)
    tokenizer = open_tokenizer(checkpoint)
    model = unfilled(checkpoint.config).to(dtype if lora else masters)
    if lora:
        attach(model, lora)
    shard(model, group, dtype)
    _with_room(model, group.home)
    _fill(model, checkpoint.weights)
    return model.eval(), tokenizer


def load_split(
    path: str | Path, team: Team, dtype: torch.dtype = torch.float32
) -> tuple[Llama, Tokenizer]:
    """`load` for a team of ranks that sample from one model together: each reads its part, the same
    bits that `load` would have there. A team of one has the whole.

    Raises ValueError if the heads cannot be dealt to so many.
    """
    checkpoint = read_checkpoint(path)
    tokenizer = open_tokenizer(checkpoint)
    model = _in_parts(checkpoint.config, team, dtype)
    _fill(model, checkpoint.weights, _part_of(model))
    return model.eval(), tokenizer


def replicate(trained: Llama, team: Team, dtype: torch.dtype = torch.float32) -> Llama:
    """What `load_split` would give of a model once it is saved, to the bit, from memory to memory.

    For all ranks of the group, which may hold the trained one cut. It stays as it is.
    """
    model = _in_parts(trained.config, team, dtype)
    _fill(model, _plain(trained), _part_of(model))
    return model.eval()


def _in_parts(config: LlamaConfig, team: Team, dtype: torch.dtype) -> Llama:
    """This rank's part of a model, without its weights; the whole of it in a team of one."""
    if team.size == 1:
        return _with_room(unfilled(config).to(dtype), team.group.device)
    with torch.device("meta"):
        model = TeamLlama(config, team).to(dtype)
    return _with_room(model, team.group.device)


def _with_room(model: Llama, device: str | torch.device) -> Llama:
    """Itself, with memory for its weights. Raises ValueError if there is not so much."""
    with naming_shortage(
        f"the model's {model.config.parameter_count:,} weights do not fit in the memory of "
        f"{device}; `python -m llama plan --model DIR` says what each phase takes"
    ):
        model.to_empty(device=device)
    return model


def _part_of(model: Llama) -> Callable[[str, Tensor], Part]:
    if isinstance(model, TeamLlama):
        split = model.split
        return lambda name, weight: split.part(name)
    return _rows


def load_state(model: Llama, path: str | Path) -> None:
    """Replaces the model's weights by those of a checkpoint of the same shape.

    Raises ValueError for any other.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.config != model.config:
        raise ValueError(
            f"{path} holds another model: {checkpoint.config}, expected {model.config}"
        )
    _fill(model, checkpoint.weights)


def save(model: Llama, tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes a Hugging Face directory, in the weights' own type, what adapters add included. All
    ranks call it, and each writes some of the files, so the directory must be on a disk that they
    share.

    A crash leaves a directory that `load` refuses, never one that it half reads.
    """
    write_hf(Path(path), _plain(model), model.config, tokenizer)


def held(state: Mapping[str, Tensor]) -> Weights:
    """Weights that are in memory, whole or cut across the ranks."""
    return Weights(state, lambda name, part, out: full_tensor(state[name])[part])


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all weights' names, types, shapes and SHA-256, however many ranks hold them.

    With adapters, over the weights as they would be saved.
    """
    weights, lines = _plain(model), list[str]()
    names = sorted(weights.like)
    with ThreadPoolExecutor(TOGETHER) as pool:
        for first in range(0, len(names), TOGETHER):
            some = names[first : first + TOGETHER]
            lines += pool.map(_line, some, [weights.read(name, (), None) for name in some])
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _line(name: str, tensor: Tensor) -> str:
    found = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {found}\n"


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The directory's tokenizer. Raises ValueError if it has more pieces than the model has ids."""
    size = checkpoint.config.vocab_size
    tokenizer = Tokenizer(checkpoint.tokenizer_file, checkpoint.added, size)
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"{checkpoint.tokenizer_file} has {tokenizer.vocab_size} pieces, "
            f"the model's vocabulary only {size}"
        )
    return tokenizer


def _plain(model: nn.Module) -> Weights:
    state, adapted = plain_state(model), added_to(model)
    return Weights(state, lambda name, part, out: merged(state[name], adapted.get(name))[part])


def _rows(name: str, weight: Tensor) -> Part:
    return (local_rows(weight),)


def _fill(model: nn.Module, weights: Weights, part: Callable[[str, Tensor], Part] = _rows) -> None:
    for name, weight in plain_state(model).items():
        out = local_part(weight)
        read = weights.read(name, part(name, weight), out)
        if read is not out:
            out.copy_(read)
    silence(model)
