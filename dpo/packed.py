"""Attention of lines one behind the other in a single row without padding, on a CPU.

```
  row          p p p c c r r r p p c c c r                       two lines, prompt chosen rejected
  position     0 1 2 3 4 3 4 5 0 1 2 3 4 2
  queries      p p p c c         r r r   p p c c c       r       four pieces, one after the other,
  over keys    p p p c c   p p p r r r   p p c c c   p p r       each as long as it is
```
In the last block only those tokens ask that predict one of an answer's, over the same keys:
```
  queries          p c         p r r       p c c       p         a piece an answer
```
Exact: no token sees another one than it would in a row of its own. A piece is a call of the
kernel, which costs little on a CPU. For the backward pass the row's queries, keys, values and
outputs are kept, and no piece's own: the keys that a rejected answer sees are put together again.
Knows no weights and no loss.
"""

# T tokens of the row, N queries and M keys of a piece, Q queries of all, H query heads,
# G key-value heads, D width

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpo.fork import Ints

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

Span = tuple[int, int]  # of the row's tokens: where it begins, and how many


@dataclass(frozen=True)
class Piece:
    """Queries that stand side by side, and where in the row the text stands that they are of.

    hidden_NM: is added to the scores, 0 or minus infinity; none where causality says it all.
    """

    length: int
    text: Sequence[Span]
    hidden_NM: Tensor | None

    def sight(self, q_1HND: Tensor) -> dict[str, Any]:
        """Who sees whom, as the kernel wants to be told: in the type that it computes in."""
        if self.hidden_NM is None:
            return {"is_causal": True}
        return {"is_causal": False, "attn_mask": self.hidden_NM.to(q_1HND.dtype)}

    def seen(self, x_1GTD: Tensor) -> Tensor:
        """The text's keys, or values, of the row's."""
        parts = [x_1GTD.narrow(2, *span) for span in self.text]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def parts(self, x_1GMD: Tensor) -> Sequence[Tensor]:
        """The text's keys, or values, span by span."""
        lengths = [count for _, count in self.text]
        return [x_1GMD] if len(lengths) == 1 else x_1GMD.split(lengths, dim=2)


def _piece(text: Sequence[Span], asking_N: Ints) -> Piece:
    """Of the queries at these places of the text, ascending."""
    text = [span for span in text if span[1]]
    if len(asking_N) == asking_N[-1] + 1:
        return Piece(len(asking_N), text, None)
    M = sum(count for _, count in text)
    hidden_NM = np.where(np.arange(M) > asking_N[:, None], -np.float32(np.inf), np.float32(0))
    return Piece(len(asking_N), text, torch.from_numpy(hidden_NM))


class Packed:
    """The `Attend` of such lines, each of (shared, chosen, rejected) tokens, which may be none.

    asking: of each line, the places whose queries `wanted` is given, answer by answer.
    """

    def __init__(
        self, forks: Sequence[tuple[int, int, int]], asking: Sequence[Sequence[Ints]] = ()
    ) -> None:
        self.pieces: list[Piece] = []
        self.wanted_pieces: list[Piece] = []
        places, start = [], 0
        for line, (shared, chosen, rejected) in enumerate(forks):
            second = start + shared + chosen
            texts = [(start, shared + chosen)], [(start, shared), (second, rejected)]
            own = [np.arange(shared + chosen), np.arange(shared, shared + rejected)]
            if not chosen:  # the rejected answer goes on where the chosen one ends: no fork
                texts, own = ([(start, shared + rejected)],) * 2, [np.arange(shared + rejected)]
            self.pieces += [_piece(text, own_N) for text, own_N in zip(texts, own) if len(own_N)]
            places += own
            for answer, asking_N in enumerate(asking[line] if asking else ()):
                # in the line the chosen answer stands before the rejected one
                behind_N = answer * chosen * (asking_N >= shared)
                self.wanted_pieces.append(_piece(texts[answer], asking_N - behind_N))
            start = second + rejected
        self.positions_BT = torch.from_numpy(np.concatenate(places))[None]

    def to(self, device: torch.device) -> Packed:
        """Itself: there is such a kernel on a CPU alone."""
        return self

    def __call__(self, layer: int, q_1THD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor) -> Tensor:
        """Attention output, 1THD."""
        out_1THD: Tensor = _Attention.apply(self.pieces, q_1THD, k_1TGD, v_1TGD)
        return out_1THD

    def wanted(self, layer: int, q_1QHD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor) -> Tensor:
        """Attention output, 1QHD, of the queries that ask in the last block."""
        out_1QHD: Tensor = _Attention.apply(self.wanted_pieces, q_1QHD, k_1TGD, v_1TGD)
        return out_1QHD


class _Attention(torch.autograd.Function):
    """Piece by piece, and the parts joined: one output, and one gradient each of q, k and v."""

    @staticmethod
    def forward(
        ctx: Any, pieces: Sequence[Piece], q_1QHD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor
    ) -> Tensor:
        outs, lses = [], []
        for piece, k, v, (q,) in _cut(pieces, k_1TGD, v_1TGD, q_1QHD):
            out_1HND, lse_1HN = _forward(q, k, v, 0.0, **piece.sight(q))
            outs.append(out_1HND)
            lses.append(lse_1HN)
        ctx.pieces, out_1QHD = pieces, _joined(outs)
        ctx.save_for_backward(out_1QHD, q_1QHD, k_1TGD, v_1TGD, *lses)
        return out_1QHD

    @staticmethod
    def backward(ctx: Any, grad_1QHD: Tensor) -> Any:
        out_1QHD, q_1QHD, k_1TGD, v_1TGD, *lses = ctx.saved_tensors
        q_grads, k_grads, v_grads = list[Tensor](), dict[int, Tensor](), dict[int, Tensor]()
        cut = _cut(ctx.pieces, k_1TGD, v_1TGD, q_1QHD, out_1QHD, grad_1QHD)
        for (piece, k, v, (q, out, grad)), lse in zip(cut, lses):
            q_grad, k_grad, v_grad = _backward(grad, q, k, v, out, lse, 0.0, **piece.sight(q))
            q_grads.append(q_grad)
            _add(k_grads, piece, k_grad)
            _add(v_grads, piece, v_grad)
        return None, *map(_joined, (q_grads, k_grads.values(), v_grads.values()))


def _add(to: dict[int, Tensor], piece: Piece, grad_1GMD: Tensor) -> None:
    """Adds what a piece says of keys, or values, by where a span begins: the first piece that sees
    a span sees all of it."""
    for (start, count), part in zip(piece.text, piece.parts(grad_1GMD)):
        if start in to:
            to[start].narrow(2, 0, count).add_(part)
        else:
            to[start] = part


def _joined(parts_1HND: Iterable[Tensor]) -> Tensor:
    return torch.cat([part_1HND.transpose(1, 2) for part_1HND in parts_1HND], dim=1)


def _cut(
    pieces: Sequence[Piece], k_1TGD: Tensor, v_1TGD: Tensor, *of_queries_1QHD: Tensor
) -> Iterator[tuple[Piece, Tensor, Tensor, tuple[Tensor, ...]]]:
    """Each piece, the keys and values that it sees, its queries and what else there is of them."""
    k_1GTD, v_1GTD = k_1TGD.transpose(1, 2), v_1TGD.transpose(1, 2)
    sizes = [piece.length for piece in pieces]
    parts = zip(*(x_1QHD.transpose(1, 2).split(sizes, dim=2) for x_1QHD in of_queries_1QHD))
    for piece, of_piece in zip(pieces, parts):
        yield piece, piece.seen(k_1GTD), piece.seen(v_1GTD), of_piece
