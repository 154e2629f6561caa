"""Attention of lines one behind the other in a single row without padding, on a CPU.

```
  row          p p p c c r r r p p c c c r                       two lines, prompt chosen rejected
  position     0 1 2 3 4 3 4 5 0 1 2 3 4 2
  queries      p p p c c         r r r   p p c c c       r       four pieces, one after the other,
  over keys    p p p c c   p p p r r r   p p c c c   p p r       each as long as it is
```
Exact: no token sees another one than it would in a row of its own. A piece is a call of the
kernel, which costs little on a CPU. For the backward pass the row's queries, keys, values and
outputs are kept, and no piece's own: the keys that a rejected answer sees are put together again.
Knows no weights and no loss.
"""

# T tokens of the row, N queries and M keys of a piece, H query heads, G key-value heads, D width

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True)
class Piece:
    """Queries that stand side by side, and what they see: themselves, causally, and before them
    the first `shared` tokens of the piece before.

    hidden_NM: is added to the scores, 0 or minus infinity; none where causality says it all.
    """

    length: int
    shared: int = 0
    hidden_NM: Tensor | None = None

    def sight(self, q_1HND: Tensor) -> dict[str, Any]:
        """Who sees whom, as the kernel wants to be told: in the type that it computes in."""
        if self.hidden_NM is None:
            return {"is_causal": True}
        return {"is_causal": False, "attn_mask": self.hidden_NM.to(q_1HND.dtype)}

    def seen(self, before_1GTD: Tensor, own_1GND: Tensor) -> Tensor:
        """The keys that it sees, or the values, from the piece before it and its own."""
        if not self.shared:
            return own_1GND
        return torch.cat((before_1GTD.narrow(2, 0, self.shared), own_1GND), dim=2)


class Packed:
    """The `Attend` of such lines, each of (shared, chosen, rejected) tokens, which may be none."""

    def __init__(self, forks: Sequence[tuple[int, int, int]]) -> None:
        self.pieces: list[Piece] = []
        places = []
        for shared, chosen, rejected in forks:
            if not chosen:  # the rejected answer goes on where the chosen one ends: no fork
                chosen, rejected = rejected, 0
            self.pieces.append(Piece(shared + chosen))
            places.append(np.arange(shared + chosen))
            if rejected:
                hidden_NM = torch.full((rejected, shared + rejected), -torch.inf).triu(shared + 1)
                self.pieces.append(Piece(rejected, shared, hidden_NM))
                places.append(np.arange(shared, shared + rejected))
        self.positions_BT = torch.from_numpy(np.concatenate(places))[None]

    def to(self, device: torch.device) -> Packed:
        """Itself: there is such a kernel on a CPU alone."""
        return self

    def __call__(self, layer: int, q_1THD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor) -> Tensor:
        """Attention output, 1THD."""
        out_1THD: Tensor = _Attention.apply(self.pieces, q_1THD, k_1TGD, v_1TGD)
        return out_1THD


class _Attention(torch.autograd.Function):
    """Piece by piece, and the parts joined: one output, and one gradient each of q, k and v."""

    @staticmethod
    def forward(ctx: Any, pieces: Sequence[Piece], *qkv_1THD: Tensor) -> Tensor:
        outs, lses = [], []
        for piece, (q_1HND, k_1GMD, v_1GMD) in _cut(pieces, *qkv_1THD):
            out_1HND, lse_1HN = _forward(q_1HND, k_1GMD, v_1GMD, 0.0, **piece.sight(q_1HND))
            outs.append(out_1HND)
            lses.append(lse_1HN)
        ctx.pieces, out_1THD = pieces, _joined(outs)
        ctx.save_for_backward(out_1THD, *qkv_1THD, *lses)
        return out_1THD

    @staticmethod
    def backward(ctx: Any, grad_1THD: Tensor) -> Any:
        out_1THD, q_1THD, k_1TGD, v_1TGD, *lses = ctx.saved_tensors
        tensors = q_1THD, k_1TGD, v_1TGD, out_1THD, grad_1THD
        grads: list[list[Tensor]] = [[], [], []]
        for (piece, (q, k, v, out, grad)), lse in zip(_cut(ctx.pieces, *tensors), lses):
            parts = _backward(grad, q, k, v, out, lse, 0.0, **piece.sight(q))
            for of_pieces, part in zip(grads, parts):
                of_pieces.append(part)
            if piece.shared:
                for of_pieces in grads[1:]:  # what is said of keys of the piece before it
                    shared, own = of_pieces[-1].split((piece.shared, piece.length), dim=2)
                    of_pieces[-2].narrow(2, 0, piece.shared).add_(shared)
                    of_pieces[-1] = own
        return None, *map(_joined, grads)


def _cut(pieces: Sequence[Piece], *tensors_1THD: Tensor) -> Iterator[tuple[Piece, list[Tensor]]]:
    """The pieces' parts of queries, of what they see of keys and values, and of other tensors."""
    sizes = [piece.length for piece in pieces]
    parts = zip(*(x_1THD.transpose(1, 2).split(sizes, dim=2) for x_1THD in tensors_1THD))
    k, v = tensors_1THD[1:3]  # before the first piece, which shares nothing
    for piece, (q, own_k, own_v, *rest) in zip(pieces, parts):
        yield piece, [q, piece.seen(k, own_k), piece.seen(v, own_v), *rest]
        k, v = own_k, own_v


def _joined(parts_1HND: Sequence[Tensor]) -> Tensor:
    return torch.cat([part_1HND.transpose(1, 2) for part_1HND in parts_1HND], dim=1)
