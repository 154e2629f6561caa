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

from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint import Checkpoint, Weights, account_for, unfilled
from llama.config import LlamaConfig, from_meta
from llama.files import read_json_object, replace_file, replace_json, replacing
from llama.header import DTYPES
from llama.stored import ALL, Part
from llama.tokenizer import Tokenizer

ROWS, COLUMNS = 0, 1
MAPPED_BYTES = 2**28  # of a part that may have been looked at before it is mapped anew
_CUT = {
    "wq": ROWS, "wk": ROWS, "wv": ROWS, "w1": ROWS, "w3": ROWS, "output": ROWS,
    "wo": COLUMNS, "w2": COLUMNS, "tok_embeddings": COLUMNS,
}  # fmt: skip


def read_meta(path: Path) -> Checkpoint:
    """A directory of `params.json` and `consolidated.*.pth`, `tokenizer.model` in it or beside it.

    The vocabulary's size is the tokenizer's, unless `params.json` says it; the context is Llama 2's
    4096, which the layout does not state. Raises ValueError, naming file and tensor, for whatever
    is missing, left over or damaged. Nothing in a `.pth` is executed.
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
    model = unfilled(config).state_dict()
    files = [_File(file) for file in _numbered(path)]
    shapes = {
        _meta_name(name): _part_shape(_meta_name(name), weight.shape, len(files))
        for name, weight in model.items()
    }
    for file in files:
        found = {name: tuple(tensor.shape) for name, tensor in file.like.items()}
        account_for(file.path, shapes, found)
        for name, tensor in file.like.items():
            if tensor.dtype != files[0].like[name].dtype:
                raise ValueError(
                    f"{file.path}: {name!r} is {tensor.dtype}, unlike in the first part"
                )
    like = {
        name: torch.empty_like(weight, dtype=files[0].like[_meta_name(name)].dtype)
        for name, weight in model.items()
    }

    def read(name: str, part: Part, out: Tensor | None) -> Tensor:
        rows, columns = (*part, ALL, ALL)[:2]
        at_N = torch.arange(like[name].shape[0])
        if _is_rotated(name):
            at_N = _halves_from_pairs(name, at_N, config)
        return _joined(files, _meta_name(name), like[name], at_N[rows], columns)

    return Checkpoint(config, tokenizer_file, Weights(like, read))


def _numbered(path: Path) -> list[Path]:
    files = sorted(path.glob("consolidated.*.pth"))
    if not files:
        raise ValueError(f"{path} holds no consolidated.*.pth")
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02}.pth":
            raise ValueError(f"{path} holds {file.name}, but no consolidated.{number:02}.pth")
    return files


class _File:
    """One of the parts, mapped into memory: only what is looked at is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.like = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in _read_part(path).items()
        }
        self._part: dict[str, Tensor] = {}
        self._looked_at = MAPPED_BYTES

    def tensor(self, name: str) -> Tensor:
        """A view of the file; to be copied from at once."""
        if self._looked_at >= MAPPED_BYTES:  # what was looked at counts as ours while it is mapped
            self._part, self._looked_at = _read_part(self.path), 0
        self._looked_at += self._part[name].nbytes
        return self._part[name]


def _joined(files: list[_File], name: str, like: Tensor, at_N: Tensor, columns: slice) -> Tensor:
    """Rows `at_N` and some columns of a whole tensor, out of the parts that hold them."""
    cut, parts = _cut(name), len(files)
    if like.ndim == 1:
        return files[0].tensor(name)[at_N]
    wanted = range(like.shape[1])[columns]
    out = torch.empty(len(at_N), len(wanted), dtype=like.dtype)
    each = [n // parts if dim == cut else n for dim, n in enumerate(like.shape)]
    for number, file in enumerate(files if cut is not None else files[:1]):
        first = number * each[1] if cut == COLUMNS else 0
        here = range(max(wanted.start, first), min(wanted.stop, first + each[1]))
        chosen_N = at_N // each[0] == number if cut == ROWS else torch.ones_like(at_N).bool()
        if here and chosen_N.any():
            rows = file.tensor(name)[:, here.start - first : here.stop - first]
            into = slice(here.start - wanted.start, here.stop - wanted.start)
            out[chosen_N, into] = rows[at_N[chosen_N] % each[0]]
    return out


def _read_part(file: Path) -> dict[str, Tensor]:
    try:
        part = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a damaged archive raises is anybody's guess
        reason = (str(error) or repr(error)).splitlines()[0]
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


def _is_rotated(name: str) -> bool:
    return name.endswith(("wq.weight", "wk.weight"))


def _halves_from_pairs(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    if not _is_rotated(name):
        return weight
    return _swap(weight, (-1, config.head_dim // 2, 2))


def pairs_from_halves(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    if not _is_rotated(name):
        return weight
    return _swap(weight, (-1, 2, config.head_dim // 2))


def _swap(weight: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    rows = torch.arange(weight.shape[0]).view(sizes).transpose(1, 2).flatten()
    return weight[rows]


def write_meta(
    path: Path, weights: Weights, config: LlamaConfig, tokenizer: Tokenizer, parts: int = 1
) -> None:
    """Writes weights as a directory for Meta's own code, in so many parts; one part is in memory at
    a time.

    The layout knows no tied output: it is written as a copy of the embeddings. `params.json` comes
    last, so a directory that has it is complete. Raises ValueError if no part can have whole heads.
    """
    if parts < 1 or config.n_kv_heads % parts:
        raise ValueError(f"{config.n_kv_heads} key-value heads cannot be dealt to {parts} parts")
    ours = {_meta_name(name): name for name in weights.like}
    if config.tie_embeddings:
        ours["output.weight"] = "tok_embeddings.weight"
    shapes = {
        theirs: _part_shape(theirs, weights.like[name].shape, parts)
        for theirs, name in ours.items()
    }
    for number in range(parts):
        part = {
            theirs: pairs_from_halves(
                theirs, weights.read(name, _place(theirs, shapes[theirs], number), None), config
            )
            for theirs, name in ours.items()
        }
        with replacing(path / f"consolidated.{number:02}.pth") as draft:
            torch.save({name: _alone(tensor) for name, tensor in part.items()}, draft)
    replace_file(path / "tokenizer.model", tokenizer.model_bytes)
    replace_json(path / "params.json", _params(config))


def _alone(tensor: Tensor) -> Tensor:
    """A copy, if it is a view: torch.save stores all that lies behind one."""
    is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone(memory_format=torch.contiguous_format) if is_view else tensor


def _place(name: str, shape: tuple[int, ...], number: int) -> Part:
    """Where part `number`, of this shape, lies in the whole tensor."""
    cut = _cut(name)
    return tuple(
        slice(number * n, (number + 1) * n) if dim == cut else ALL for dim, n in enumerate(shape)
    )


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
