"""Meta's layout of a checkpoint directory: `params.json` and the parts, `consolidated.NN.pth`.

```
  cut along rows      wq wk wv w1 w3 output     part 0 over part 1 over …
  cut along columns   wo w2 tok_embeddings      part 0 beside part 1 beside …
  in every part       the norms
```
Rotary embedding turns neighbouring pairs there and halves here, so the rows of wq and wk change
places within a head:
```
  Meta   0 1 2 3 4 5   pairs (0 1) (2 3) (4 5)
  ours   0 2 4 1 3 5   pairs (0 1) (2 3) (4 5), a pair's members half a head apart
```
Knows no device and no gradient.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint import Checkpoint, Rows, account_for, unfilled
from llama.config import LlamaConfig, from_meta
from llama.files import read_json_object, replace_file, replace_json, replacing
from llama.header import DTYPES
from llama.tokenizer import Tokenizer

ROWS, COLUMNS = 0, 1
_CUT = {
    "wq": ROWS, "wk": ROWS, "wv": ROWS, "w1": ROWS, "w3": ROWS, "output": ROWS,
    "wo": COLUMNS, "w2": COLUMNS, "tok_embeddings": COLUMNS,
}  # fmt: skip


def read_meta(path: Path) -> Checkpoint:
    """A directory of `params.json` and `consolidated.*.pth`, `tokenizer.model` in it or beside it.

    The vocabulary's size is the tokenizer's; the context is Llama 2's 4096, which the layout does
    not state. Raises ValueError, naming file and tensor, for whatever is missing, left over or
    damaged. Nothing in a `.pth` is executed.
    """
    tokenizer_file = path / "tokenizer.model"
    if not tokenizer_file.is_file():
        tokenizer_file = path.resolve().parent / "tokenizer.model"
    settings_file = path / "params.json"
    params = read_json_object(settings_file)
    try:
        config = from_meta(params, Tokenizer(tokenizer_file).vocab_size)
    except ValueError as error:
        raise ValueError(f"{settings_file}: {error}") from error
    files = sorted(path.glob("consolidated.*.pth"))
    if not files:
        raise ValueError(f"{path} holds no consolidated.*.pth")
    parts = [_read_part(file) for file in files]
    whole = {_meta_name(name): (name, w.shape) for name, w in unfilled(config).state_dict().items()}
    for file, part in zip(files, parts):
        shapes = {
            theirs: _part_shape(theirs, shape, len(parts)) for theirs, (_, shape) in whole.items()
        }
        account_for(file, shapes, {name: tuple(tensor.shape) for name, tensor in part.items()})

    def read(rows: Rows) -> Iterator[tuple[str, Tensor]]:
        for theirs, (ours, _) in whole.items():
            joined = _join(theirs, [part[theirs] for part in parts])
            yield ours, _halves_from_pairs(ours, joined, config)[rows(ours)]

    return Checkpoint(config, tokenizer_file, read)


def _read_part(file: Path) -> dict[str, Tensor]:
    try:
        part = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file} is damaged or holds more than tensors; nothing of it was run ({reason})"
        ) from error
    if not isinstance(part, dict):
        raise ValueError(f"{file} must hold a dictionary of tensors, found a {type(part).__name__}")
    part.pop("rope.freqs", None)  # a table that follows from the config
    for name, tensor in part.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES.values():
            raise ValueError(f"{file}: {name!r} is no tensor of 16- or 32-bit floats")
    return part


def _meta_name(ours: str) -> str:
    return ours.replace(".ffn.", ".feed_forward.")


def _cut(name: str) -> int | None:
    return _CUT.get(name.split(".")[-2])


def _part_shape(name: str, shape: torch.Size, parts: int) -> tuple[int, ...]:
    cut = _cut(name)
    if cut is not None and shape[cut] % parts:
        raise ValueError(f"{name} of shape {tuple(shape)} cannot be cut into {parts} equal parts")
    return tuple(n // parts if dim == cut else n for dim, n in enumerate(shape))


def _join(name: str, parts: list[Tensor]) -> Tensor:
    cut = _cut(name)
    return parts[0] if cut is None else torch.cat(parts, dim=cut)


def _is_rotated(name: str) -> bool:
    return name.endswith(("wq.weight", "wk.weight"))


def _halves_from_pairs(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    if not _is_rotated(name):
        return weight
    return _swap(weight, (-1, config.head_dim // 2, 2))


def _pairs_from_halves(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    if not _is_rotated(name):
        return weight
    return _swap(weight, (-1, 2, config.head_dim // 2))


def _swap(weight: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    rows = torch.arange(weight.shape[0]).view(sizes).transpose(1, 2).flatten()
    return weight[rows]


def write_meta(
    path: Path,
    state: Mapping[str, Tensor],
    config: LlamaConfig,
    tokenizer: Tokenizer,
    parts: int = 1,
) -> None:
    """Writes whole weights, by our names, as a directory for Meta's own code, in so many parts.

    The layout knows no tied output: it is written as a copy of the embeddings. `params.json` comes
    last, so a directory that has it is complete. Raises ValueError if no part can have whole heads.
    """
    if parts < 1 or config.n_kv_heads % parts:
        raise ValueError(f"{config.n_kv_heads} key-value heads cannot be dealt to {parts} parts")
    whole = {
        _meta_name(name): _pairs_from_halves(name, weight, config) for name, weight in state.items()
    }
    if config.tie_embeddings:
        whole["output.weight"] = whole["tok_embeddings.weight"]
    for name, weight in whole.items():
        _part_shape(name, weight.shape, parts)
    for number in range(parts):
        part = {name: _part(name, weight, number, parts) for name, weight in whole.items()}
        with replacing(path / f"consolidated.{number:02}.pth") as draft:
            torch.save(part, draft)
    replace_file(path / "tokenizer.model", tokenizer.model_bytes)
    replace_json(path / "params.json", _params(config))


def _part(name: str, weight: Tensor, number: int, parts: int) -> Tensor:
    cut = _cut(name)
    part = weight if cut is None else weight.chunk(parts, dim=cut)[number]
    # A copy, for torch.save stores all that lies behind a view.
    return part.clone(memory_format=torch.contiguous_format)


def _params(config: LlamaConfig) -> dict[str, int | float]:
    """Meta states the width of the SwiGLU as 8·dim/3, times a factor, rounded up to a multiple."""
    params: dict[str, int | float] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
        "multiple_of": config.ffn_dim,
    }
    plain = 8 * config.dim // 3
    if plain > config.ffn_dim:
        params["ffn_dim_multiplier"] = config.ffn_dim / plain
    return params
