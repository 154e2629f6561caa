"""Attention of lines one behind the other in a single row without padding, on a CPU.

```
  row          p p p c c r r p p c c r r r       two lines, prompt chosen rejected
  position     0 1 2 3 4 3 4 0 1 2 3 2 3 4
  queries      p p p                             four pieces, one after the other, each over its
                     c c r r                     line's keys up to its own last one; a rejected
                             p p c c             answer's queries do not see the chosen one's
                                     r r r
```
In the last block only those tokens ask that predict one of an answer's: a piece a line.

Exact: no token sees another one than it would in a row of its own. A piece is a call of the
kernel, which costs little on a CPU; its keys lie side by side, so that none is copied. For the
backward pass the row's queries, keys, values and outputs are kept, and no piece's own. Knows no
weights and no loss.
"""

# T tokens of the row, L of a line, N queries and M keys of a piece, Q queries of all, H query
# heads, G key-value heads, D width

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpo.fork import Ints

_forward = torch._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

Fork = tuple[int, int, int]  # tokens of a line: shared, the chosen answer's, the rejected one's


@dataclass(frozen=True)
class Piece:
    """N of a line's queries, side by side, over the line's first M keys.

    hidden_NM: is added to the scores, 0 or minus infinity; none where causality says it all.
    """

    N: int
    M: int
    hidden_NM: Tensor | None

    def sight(self, q_1HND: Tensor) -> dict[str, Any]:
        """Who sees whom, as the kernel wants to be told: in the type that it computes in."""
        if self.hidden_NM is None:
            return {"is_causal": True}
        return {"is_causal": False, "attn_mask": self.hidden_NM.to(q_1HND.dtype)}

    def seen(self, x_1GLD: Tensor) -> Tensor:
        """The keys, or values, that it is over, of its line's."""
        return x_1GLD if x_1GLD.shape[2] == self.M else x_1GLD.narrow(2, 0, self.M)


def _piece(asking_N: Ints, M: int, fork: Fork) -> Piece:
    """Of the queries at these places of a line, over its first M keys."""
    count, shared, second = len(asking_N), fork[0], fork[0] + fork[1]
    if count <= second and np.array_equal(asking_N, np.arange(count)):
        return Piece(count, M, None)
    hidden_NM = np.arange(M) > asking_N[:, None]
    hidden_NM[asking_N >= second, shared:second] = True
    added_NM = np.where(hidden_NM, -np.float32(np.inf), np.float32(0))
    return Piece(count, M, torch.from_numpy(added_NM))


class Packed:
    """The `Attend` of such lines.

    asking: of each line, the places whose queries `wanted` is given, answer by answer.
    """

    def __init__(self, forks: Sequence[Fork], asking: Sequence[Sequence[Ints]] = ()) -> None:
        self.lengths = [sum(fork) for fork in forks]
        self.lines: list[list[Piece]] = []
        places = []
        for fork, L in zip(forks, self.lengths):
            shared, chosen, rejected = fork
            places += [np.arange(shared + chosen), np.arange(shared, shared + rejected)]
            # the chosen answer's queries go where they make fewer scores
            first = shared if 0 < rejected < shared else shared + chosen
            spans = [(a, b) for a, b in ((0, first), (first, L)) if a < b]
            self.lines.append([_piece(np.arange(a, b), b, fork) for a, b in spans])
        self.positions_BT = torch.from_numpy(np.concatenate(places))[None]
        self.wanted_lines = [
            [_piece(np.concatenate(answers), L, fork)]
            for answers, L, fork in zip(asking, self.lengths, forks)
        ]

    def to(self, device: torch.device) -> Packed:
        """Itself: there is such a kernel on a CPU alone."""
        return self

    def __call__(self, layer: int, q_1THD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor) -> Tensor:
        """Attention output, 1THD."""
        out_1THD: Tensor = _Attention.apply(self.lines, self.lengths, q_1THD, k_1TGD, v_1TGD)
        return out_1THD

    def wanted(self, layer: int, q_1QHD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor) -> Tensor:
        """Attention output, 1QHD, of the queries that ask in the last block."""
        lines = self.wanted_lines
        out_1QHD: Tensor = _Attention.apply(lines, self.lengths, q_1QHD, k_1TGD, v_1TGD)
        return out_1QHD


class _Attention(torch.autograd.Function):
    """Piece by piece, and the parts joined: one output, and one gradient each of q, k and v."""

    @staticmethod
    def forward(
        ctx: Any,
        lines: Sequence[Sequence[Piece]],
        lengths: Sequence[int],
        q_1QHD: Tensor,
        k_1TGD: Tensor,
        v_1TGD: Tensor,
    ) -> Tensor:
        ctx.lines, ctx.lengths = lines, lengths
        ctx.counts = [piece.N for pieces in lines for piece in pieces]
        queries, outs, lses = _parts(q_1QHD, ctx.counts), [], []
        for pieces, k, v in zip(lines, _parts(k_1TGD, lengths), _parts(v_1TGD, lengths)):
            for piece, q in zip(pieces, queries):
                out_1HND, lse_1HN = _forward(q, piece.seen(k), piece.seen(v), **piece.sight(q))
                outs.append(out_1HND)
                lses.append(lse_1HN)
        out_1QHD = _joined(outs)
        ctx.save_for_backward(out_1QHD, q_1QHD, k_1TGD, v_1TGD, *lses)
        return out_1QHD

    @staticmethod
    def backward(ctx: Any, grad_1QHD: Tensor) -> Any:
        out_1QHD, q_1QHD, k_1TGD, v_1TGD, *lses = ctx.saved_tensors
        of_queries = [_parts(x, ctx.counts) for x in (grad_1QHD, q_1QHD, out_1QHD)]
        of_pieces = zip(*of_queries, lses)
        keys, values = _parts(k_1TGD, ctx.lengths), _parts(v_1TGD, ctx.lengths)
        q_grads, k_grads, v_grads = list[Tensor](), list[Tensor](), list[Tensor]()
        for pieces, k, v in zip(ctx.lines, keys, values):
            of_keys, of_values = [], []
            for piece, (grad, q, out, lse) in zip(pieces, of_pieces):
                seen, sight = (piece.seen(k), piece.seen(v)), piece.sight(q)
                q_grad, k_grad, v_grad = _backward(grad, q, *seen, out, lse, 0.0, **sight)
                q_grads.append(q_grad)
                of_keys.append(k_grad)
                of_values.append(v_grad)
            k_grads.append(_summed(of_keys))
            v_grads.append(_summed(of_values))
        return None, None, *map(_joined, (q_grads, k_grads, v_grads))


def _summed(grads_1GMD: Sequence[Tensor]) -> Tensor:
    """The gradient of a line's keys, or values, from its pieces'; the last one is over all."""
    *others, last_1GLD = grads_1GMD
    for grad_1GMD in others:
        last_1GLD.narrow(2, 0, grad_1GMD.shape[2]).add_(grad_1GMD)
    return last_1GLD


def _parts(x_1THD: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Pieces' or lines' parts, in turn, with the heads in front."""
    return iter(x_1THD.transpose(1, 2).split(sizes, dim=2))


def _joined(parts_1HND: Sequence[Tensor]) -> Tensor:
    return torch.cat([part_1HND.transpose(1, 2) for part_1HND in parts_1HND], dim=1)
