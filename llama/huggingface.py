"""Hugging Face's layout of a checkpoint directory: what we read, and what `transformers` opens.

Knows which file and name each weight has there. Knows no device and no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from llama import parallel
from llama.checkpoint import Checkpoint, Weights, account_for, unfilled
from llama.config import LlamaConfig, from_hf, to_hf
from llama.files import read_json_object, replace_json, replacing
from llama.header import Entry, read_header
from llama.hf_tokenizer import added_tokens, write_tokenizer
from llama.stored import equal, file_order, read_part, write_tensors
from llama.tokenizer import Tokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_BYTES = 5_000_000_000  # a weight file is no larger, unless one tensor alone is

_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w2": "mlp.down_proj",
    "ffn.w3": "mlp.up_proj",
}


def hf_names(config: LlamaConfig) -> dict[str, str]:
    """Hugging Face's name of each of our weights."""
    names = {"tok_embeddings.weight": "model.embed_tokens.weight"}
    for layer in range(config.n_layers):
        for ours, theirs in _BLOCK.items():
            names[f"layers.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    names["norm.weight"] = "model.norm.weight"
    if not config.tie_embeddings:
        names["output.weight"] = "lm_head.weight"
    return names


def read_hf(path: Path) -> Checkpoint:
    """A directory of `config.json`, `tokenizer.model` and one `.safetensors`, or several by index.

    Raises ValueError, naming file and tensor, for whatever is missing, left over, damaged, or no
    Llama 2.
    """
    settings_file = path / "config.json"
    settings = read_json_object(settings_file)
    try:
        config = from_hf(settings)
    except ValueError as error:
        raise ValueError(f"{settings_file}: {error}") from error
    names, entries = hf_names(config), _entries(path)
    if config.tie_embeddings:
        _drop_copy_of_embeddings(entries)
    shapes = {names[name]: tuple(w.shape) for name, w in unfilled(config).state_dict().items()}
    account_for(path, shapes, {name: entry.shape for name, entry in entries.items()})

    stored = {ours: entries[theirs] for ours, theirs in names.items()}
    like = {
        ours: torch.empty(entry.shape, dtype=entry.dtype, device="meta")
        for ours, entry in stored.items()
    }
    weights = Weights(like, lambda name, part, out: read_part(stored[name], part, out))
    tokenizer_file = path / "tokenizer.model"
    return Checkpoint(config, tokenizer_file, weights, added_tokens(path, config.vocab_size))


def _entries(path: Path) -> dict[str, Entry]:
    """Every tensor that the directory's weight files hold, each where the index says."""
    single, index = path / SINGLE, path / INDEX
    if single.exists():
        entries = read_header(single)
    elif index.exists():
        entries = _indexed_entries(path, index)
    else:
        raise ValueError(
            f"{path} holds neither {SINGLE} nor {INDEX}; other weight files are not read"
        )
    # Old files keep this table, which follows from the config.
    return {
        name: entry for name, entry in entries.items() if not name.endswith("rotary_emb.inv_freq")
    }


def _indexed_entries(path: Path, index: Path) -> dict[str, Entry]:
    where = read_json_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise ValueError(f"{index}: weight_map must give a file name for each tensor")
    entries: dict[str, Entry] = {}
    for file_name in sorted(set(where.values())):
        entries |= read_header(_inside(path, index, file_name))
    for name, entry in entries.items():
        if where.get(name) != entry.file.name:
            raise ValueError(
                f"{entry.file}: tensor {name!r} is there, but {index} says {where.get(name)}"
            )
    for name, file_name in where.items():
        if name not in entries:
            raise ValueError(
                f"{path / file_name}: tensor {name!r} is missing, though {index} says it is there"
            )
    return entries


def _inside(path: Path, index: Path, file_name: str) -> Path:
    """The weight file of that name, which must lie in the directory itself.

    A download cache of Hugging Face's keeps links (snapshots/x/file → blobs/y): those stay inside
    the cache's own model.
    """
    file = path / file_name
    homes = [path.resolve()]
    if path.resolve().parent.name == "snapshots":
        homes.append(path.resolve().parent.parent / "blobs")
    try:
        inside = Path(file_name).name == file_name and file.resolve().parent in homes
        file.is_file()  # raises for a name that no file can have
    except (ValueError, OSError):
        inside = False
    if not inside or "\0" in file_name:
        raise ValueError(f"{index} points outside its directory: {file_name!r}")
    return file


def _drop_copy_of_embeddings(entries: dict[str, Entry]) -> None:
    """A tied model's file may hold the output too; then it must be the embeddings, bit for bit."""
    output = entries.pop("lm_head.weight", None)
    table = entries.get("model.embed_tokens.weight")
    if output is None or table is None:
        return
    if not equal(output, table):
        raise ValueError(
            f"{output.file}: lm_head.weight differs from the embeddings that config.json ties"
        )


def write_hf(path: Path, weights: Weights, config: LlamaConfig, tokenizer: Tokenizer) -> None:
    """Writes weights as a directory that transformers opens too. For all ranks, which deal the
    weight files out among them: they must all see this directory.

    Each file is whole or absent, and `config.json` comes last (and goes first, where one is
    replaced): a directory that has it is complete. Beside what it holds anyway, no rank has more
    than one weight in memory. Raises OSError when the disk does.
    """
    group, names = parallel.current(), hf_names(config)
    if group.is_main:
        (path / "config.json").unlink(missing_ok=True)
    group.barrier()
    files = _files(weights.like)
    _write_weights(path, files, weights, names)
    if group.is_main:
        where = {names[ours]: file for file, part in files.items() for ours in part}
        _write_index(path, where, weights.like)
        write_tokenizer(path, tokenizer, config)
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
        dtype = str(next(iter(weights.like.values())).dtype).removeprefix("torch.")
        replace_json(path / "config.json", to_hf(config, dtype, **ids))
    group.barrier()


def _files(like: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Which weights go into which file, by our names: `FILE_BYTES` each."""
    parts: list[list[str]] = [[]]
    room = FILE_BYTES
    for name, tensor in like.items():
        size = _bytes(tensor)
        if parts[-1] and size > room:
            parts.append([])
            room = FILE_BYTES
        parts[-1].append(name)
        room -= size
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {
        f"model-{number:05}-of-{len(parts):05}.safetensors": part
        for number, part in enumerate(parts, start=1)
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _write_weights(
    path: Path, files: Mapping[str, list[str]], weights: Weights, names: Mapping[str, str]
) -> None:
    """As many files at a time as there are ranks, each written by one of them.

    All ranks gather every tensor, a file's first, the next file's first, …, and one keeps it: so
    the files grow side by side, and what the disk is slow at, it does for all of them at once.
    """
    group, failures = parallel.current(), []
    ours = {theirs: name for name, theirs in names.items()}
    likes = [{names[name]: weights.like[name] for name in part} for part in files.values()]
    for first in range(0, len(files), group.world_size):
        together = likes[first : first + group.world_size]
        turns = (
            (owner, name, weights.read(ours[name], (), None))
            for round_ in zip_longest(*map(file_order, together))
            for owner, name in enumerate(round_)
            if name is not None
        )
        mine = ((name, tensor) for owner, name, tensor in turns if owner == group.rank)
        if group.rank < len(together):
            file = path / list(files)[first + group.rank]
            try:
                with replacing(file) as draft, draft.open("wb") as stream:
                    write_tensors(stream, together[group.rank], mine)
            except OSError as error:
                failures.append(f"{file} could not be written: {error}")
        for _ in turns:  # a rank that has no file, or could not write it, helps to gather
            pass
    if lost := group.gather_rows(failures):
        raise OSError(lost[0])


def _write_index(path: Path, where: dict[str, str], like: Mapping[str, Tensor]) -> None:
    """The index, if there are several files; of another checkpoint's files none stays."""
    files = set(where.values())
    for old in (path / SINGLE, *path.glob("model-?????-of-?????.safetensors")):
        if old.name not in files:
            old.unlink(missing_ok=True)
    if len(files) == 1:
        (path / INDEX).unlink(missing_ok=True)
        return
    total = sum(map(_bytes, like.values()))
    replace_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
