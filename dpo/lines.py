"""Rows and pairs as arrays, and several side by side or in a row. Knows no order and no loss."""

# B lines, T tokens, N scored tokens (of all lines), S responses

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpo.fork import Fork, Forked, Ints, forked
from dpo.packed import Packed


@dataclass(frozen=True)
class Row:
    """A text as token ids, and which of them are trained on. The mask is born with the tokens."""

    ids: list[int]
    is_response: list[bool]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, each with the prompt in front."""

    chosen: Row
    rejected: Row


@dataclass(frozen=True)
class Line:
    """One line of a micro-batch, in arrays: a row, or a pair with its shared beginning once."""

    index: int  # of the item in the caller's data
    ids_T: Ints
    source_N: Ints  # place whose logits score ...
    target_N: Ints  # ... this token
    count_S: Ints  # scored tokens of each response in the line
    fork: Fork  # a row is all shared

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def sources(self) -> list[Ints]:
        """`source_N`, response by response."""
        return np.split(self.source_N, self.count_S.cumsum()[:-1])


@dataclass(frozen=True)
class MicroBatch:
    """Lines side by side, padded on the right; or one behind the other, B = 1."""

    tokens_BT: Tensor
    source_N: Tensor  # in the flattened [B·T]
    target_N: Tensor
    count_S: Tensor
    attend: Forked | Packed | None = None  # who sees whom; None: every line is an ordinary row

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        return MicroBatch(
            self.tokens_BT.to(device),
            self.source_N.to(device),
            self.target_N.to(device),
            self.count_S.to(device),
            self.attend and self.attend.to(device),
        )


def row_line(row: Row, index: int, longest: int, name: str = "row") -> Line:
    """A row as a line. Raises ValueError, naming it, if it cannot be trained on."""
    ids_T = np.asarray(row.ids, dtype=np.int64)
    response_T = np.asarray(row.is_response, dtype=bool)
    if len(ids_T) != len(response_T):
        raise ValueError(f"{name} {index}: {len(ids_T)} tokens but a mask of {len(response_T)}")
    if len(ids_T) > longest:
        raise ValueError(
            f"{name} {index} has {len(ids_T)} tokens, the model reads at most {longest}: "
            "shorten it or leave it out"
        )
    source_N = response_T[1:].nonzero()[0]
    if len(source_N) == 0:
        raise ValueError(f"{name} {index} has no response token: there is nothing to learn from it")
    if response_T[0]:
        raise ValueError(f"{name} {index}: nothing predicts its first token, yet it is a response")
    count_S = np.array([len(source_N)])
    return Line(index, ids_T, source_N, ids_T[source_N + 1], count_S, (len(ids_T), 0, 0))


def pair_line(pair: Pair, index: int, longest: int) -> Line:
    """A pair as one line: what both rows begin with, the chosen's rest, the rejected's rest.

    Raises ValueError, naming the pair, if one of its rows cannot be trained on.
    """
    chosen = row_line(pair.chosen, index, longest, "the chosen answer of pair")
    rejected = row_line(pair.rejected, index, longest, "the rejected answer of pair")
    C, R = len(chosen), len(rejected)
    least = min(C, R)
    differs = (chosen.ids_T[:least] != rejected.ids_T[:least]).nonzero()[0]
    shared = int(differs[0]) if len(differs) else least
    # a rejected token's source stands in the shared part, or after the chosen one's own tokens
    moved_N = rejected.source_N + np.where(rejected.source_N < shared, 0, C - shared)
    return Line(
        index,
        np.concatenate([chosen.ids_T, rejected.ids_T[shared:]]),
        np.concatenate([chosen.source_N, moved_N]),
        np.concatenate([chosen.target_N, rejected.target_N]),
        np.concatenate([chosen.count_S, rejected.count_S]),
        (shared, C - shared, R - shared),
    )


def pad(lines: Sequence[Line]) -> MicroBatch:
    """Lines side by side. The padding is token 0, and no scored token sees it.

    No lines at all make one token, of which nothing is scored.
    """
    T = max(map(len, lines), default=1)
    tokens_BT = np.zeros((max(1, len(lines)), T), dtype=np.int64)
    for b, line in enumerate(lines):
        tokens_BT[b, : len(line)] = line.ids_T
    pairs = any(len(line.count_S) == 2 for line in lines)
    return MicroBatch(
        torch.from_numpy(tokens_BT),
        _joined([line.source_N + b * T for b, line in enumerate(lines)]),
        _joined([line.target_N for line in lines]),
        _joined([line.count_S for line in lines]),
        forked([line.fork for line in lines], T) if pairs else None,
    )


def pack(lines: Sequence[Line]) -> MicroBatch:
    """Lines one behind the other in a single row: no padding, unless there are no lines at all."""
    if not lines:
        return pad(lines)
    starts = np.cumsum([0, *map(len, lines)])
    return MicroBatch(
        _joined([line.ids_T for line in lines])[None],
        _joined([line.source_N + start for line, start in zip(lines, starts)]),
        _joined([line.target_N for line in lines]),
        _joined([line.count_S for line in lines]),
        Packed([line.fork for line in lines], [line.sources for line in lines]),
    )


def _joined(parts: list[Ints]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))
