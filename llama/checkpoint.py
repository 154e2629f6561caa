"""What a checkpoint directory holds, whatever its layout, and whether that is one model's weights.

The layouts themselves are in `huggingface.py` and `meta.py`. Knows no file format and no rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from llama.config import LlamaConfig
from llama.model import Llama
from llama.stored import Part


@dataclass(frozen=True)
class Weights:
    """A model's weights by our names, wherever they lie; no more than one need be in memory.

    like: their types and shapes, perhaps without data.
    read(name, part, out): that part of one, on the CPU, in the type of `like`; it is read straight
      into `out`, and that is returned, where that is of the same type and on the CPU. Where the
      ranks share the weights all of them must call it alike.
    """

    like: Mapping[str, Tensor]
    read: Callable[[str, Part, Tensor | None], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose contents are checked and whose weights are not read yet.

    added: names that the directory gives to ids, such as `<pad>` behind the SentencePiece pieces.
    """

    config: LlamaConfig
    tokenizer_file: Path
    weights: Weights
    added: Mapping[int, str] = field(default_factory=dict)


def unfilled(config: LlamaConfig) -> Llama:
    """A model whose weights have shapes and no memory."""
    with torch.device("meta"):
        return Llama(config)


def account_for(
    where: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError, naming a tensor, unless `found` is exactly what is expected."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        raise ValueError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} are)")
    if extra:
        raise ValueError(
            f"{where}: tensor {extra[0]!r} belongs to no weight of this model ({len(extra)} do not)"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{where}: tensor {name!r} has shape {found[name]}, the config wants {shape}"
            )
