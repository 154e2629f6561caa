"""Hugging Face's layout of a checkpoint directory: what we read, and what `transformers` opens.

Knows which file and name each weight has there. Knows no device and no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llama import parallel
from llama.chat import CHAT_TEMPLATE
from llama.checkpoint import Checkpoint, Rows, account_for, unfilled
from llama.config import LlamaConfig, from_hf, to_hf
from llama.fast_tokenizer import tokenizer_json
from llama.files import read_json_object, replace_file, replace_json, replacing
from llama.header import Entry, read_header
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

    def read(rows: Rows) -> Iterator[tuple[str, Tensor]]:
        places = [(ours, entries[theirs]) for ours, theirs in names.items()]
        for file in sorted({entry.file for _, entry in places}):
            with safe_open(file, framework="pt") as stored:
                for ours, entry in places:
                    if entry.file == file:
                        yield ours, stored.get_slice(entry.name)[rows(ours)]

    return Checkpoint(config, path / "tokenizer.model", read)


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
    if Path(file_name).name != file_name or "\0" in file_name or file.resolve().parent not in homes:
        raise ValueError(f"{index} points outside its directory: {file_name!r}")
    return file


def _drop_copy_of_embeddings(entries: dict[str, Entry]) -> None:
    """A tied model's file may hold the output too; then it must be the embeddings, bit for bit."""
    output = entries.pop("lm_head.weight", None)
    table = entries.get("model.embed_tokens.weight")
    if output is None or table is None:
        return
    with safe_open(output.file, "pt") as a, safe_open(table.file, "pt") as b:
        if not torch.equal(a.get_tensor(output.name), b.get_tensor(table.name)):
            raise ValueError(
                f"{output.file}: lm_head.weight differs from the embeddings that config.json ties"
            )


def write_hf(
    path: Path, state: Mapping[str, Tensor], config: LlamaConfig, tokenizer: Tokenizer
) -> None:
    """Writes weights, by our names, as a directory that transformers opens too. For all ranks.

    Each file is whole or absent, and `config.json` comes last (and goes first, where one is
    replaced): a directory that has it is complete. Raises OSError when the disk does.
    """
    main, names = parallel.current().is_main, hf_names(config)
    parts = _parts(state)
    files = [SINGLE] if len(parts) == 1 else [
        f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)
    ]  # fmt: skip
    if main:
        (path / "config.json").unlink(missing_ok=True)
    for file, part in zip(files, parts):
        whole = parallel.full_tensors((name, state[name]) for name in part)
        tensors = {names[name]: tensor.contiguous() for name, tensor in whole if main}
        if main:
            with replacing(path / file) as draft:
                save_file(tensors, draft, metadata={"format": "pt"})
    if main:
        _write_index(
            path, {names[name]: f for f, part in zip(files, parts) for name in part}, state
        )
        _write_tokenizer(path, tokenizer, config.max_seq_len)
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        replace_json(path / "config.json", to_hf(config, dtype, **ids))
    parallel.current().barrier()


def _parts(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The weights' names, cut into files of `FILE_BYTES`."""
    parts: list[list[str]] = [[]]
    room = FILE_BYTES
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and size > room:
            parts.append([])
            room = FILE_BYTES
        parts[-1].append(name)
        room -= size
    return parts


def _write_index(path: Path, where: dict[str, str], state: Mapping[str, Tensor]) -> None:
    """The index, if there are several files; of another checkpoint's files none stays."""
    files = set(where.values())
    for old in path.glob("model*.safetensors"):
        if old.name not in files:
            old.unlink()
    if len(files) == 1:
        (path / INDEX).unlink(missing_ok=True)
        return
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    replace_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_tokenizer(path: Path, tokenizer: Tokenizer, max_seq_len: int) -> None:
    special = {
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
    }
    replace_file(path / "tokenizer.model", tokenizer.model_bytes)
    replace_json(path / "tokenizer.json", tokenizer_json(tokenizer))
    replace_json(path / "special_tokens_map.json", special)
    replace_json(path / "tokenizer_config.json", {
        **special,
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,  # a space before every stretch of text between control ids, as we have it
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
        "chat_template": CHAT_TEMPLATE,
    })  # fmt: skip
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    replace_json(path / "generation_config.json", ids)
