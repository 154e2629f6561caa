"""Attention of lines one behind the other in a single row without padding, on a CPU.

```
  row          p p p c c r r p p c c r r r       two lines, prompt chosen rejected
  position     0 1 2 3 4 3 4 0 1 2 3 2 3 4
  queries      p p p                             pieces, one after the other, each over its line's
                     c c r r                     keys up to its own last one; a rejected answer's
                             p p c c             queries do not see the chosen one's, which are
                                     r r r       hidden from them, or left out by a copy
```
A short line is one piece, a long one is cut where that makes fewer scores: the cheapest way is
taken. In the last block only those tokens ask that predict one of an answer's.

Exact: no token sees another one than it would in a row of its own. For the backward pass the row's
queries, keys, values and outputs are kept, and no piece's own. Knows no weights and no loss.
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

from dpo.fork import Fork, Ints

_forward = torch._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

OVERHEAD = 2**12  # scores: what a call of the kernel costs beside them, and again a copy of keys

Cut = tuple[Ints, int, bool]  # queries, over so many keys, the chosen answer's left out or not


@dataclass(frozen=True)
class Piece:
    """N of a line's queries, side by side, over the line's first M keys.

    hidden_NM: is added to the scores, 0 or minus infinity; none where causality says it all.
    without: where among the M keys some begin and end that are left out, and are no part of it.
    """

    N: int
    M: int
    hidden_NM: Tensor | None
    without: tuple[int, int] | None = None

    def sight(self, q_1HND: Tensor) -> dict[str, Any]:
        """Who sees whom, as the kernel wants to be told: in the type that it computes in."""
        if self.hidden_NM is None:
            return {"is_causal": True}
        return {"is_causal": False, "attn_mask": self.hidden_NM.to(q_1HND.dtype)}

    def seen(self, x_1GLD: Tensor) -> Tensor:
        """The keys, or values, that it is over, of its line's."""
        if self.without is not None:
            start, end = self.without
            return torch.cat((x_1GLD[:, :, :start], x_1GLD[:, :, end : self.M]), dim=2)
        return x_1GLD if x_1GLD.shape[2] == self.M else x_1GLD.narrow(2, 0, self.M)


def _piece(cut: Cut, fork: Fork) -> Piece:
    (asking_N, M, alone), shared, second = cut, fork[0], fork[0] + fork[1]
    count = len(asking_N)
    if count <= second and np.array_equal(asking_N, np.arange(count)):
        return Piece(count, M, None)
    hidden_NM = np.arange(M) > asking_N[:, None]
    hidden_NM[asking_N >= second, shared:second] = True
    if alone:
        hidden_NM = np.delete(hidden_NM, slice(shared, second), axis=1)
    added_NM = np.where(hidden_NM, -np.float32(np.inf), np.float32(0))
    return Piece(count, M, torch.from_numpy(added_NM), (shared, second) if alone else None)


def _pieces(fork: Fork, whole_N: Ints, cuts: Sequence[tuple[Ints, int, Ints]]) -> list[Piece]:
    """Of the queries at these places of a line, by the cheapest way.

    cuts: some of them over so many keys, and the others over the line's, or their own text's.
    """
    chosen, second, L = fork[1], fork[0] + fork[1], sum(fork)
    ways: list[list[Cut]] = [[(whole_N, L, False)]]
    for head_N, M, tail_N in cuts:
        ways.append([(head_N, M, False), (tail_N, L, False)])
        if second == M:  # no query of the others is the chosen answer's
            ways.append([(head_N, M, False), (tail_N, L, True)])

    def cost(way: list[Cut]) -> int:
        return sum(len(N) * (M - alone * chosen) + (1 + alone) * OVERHEAD for N, M, alone in way)

    return [_piece(cut, fork) for cut in min(ways, key=cost)]


class Packed:
    """The `Attend` of such lines.

    asking: of each line, the places whose queries `wanted` is given, answer by answer.
    """

    def __init__(self, forks: Sequence[Fork], asking: Sequence[Sequence[Ints]] = ()) -> None:
        self.lengths = [sum(fork) for fork in forks]
        self.lines: list[list[Piece]] = []
        places = []
        self.wanted_lines: list[list[Piece]] = []
        for line, fork in enumerate(forks):
            (shared, chosen, rejected), place_L = fork, np.arange(sum(fork))
            second = shared + chosen
            places += [place_L[:second], place_L[shared : shared + rejected]]
            ends = (shared, second) if rejected else ()
            cuts = [(place_L[:end], end, place_L[end:]) for end in ends if end]
            self.lines.append(_pieces(fork, place_L, cuts))
            if asking:
                answers = asking[line]
                cuts = [(answers[0], second, answers[1])] if len(answers) == 2 else []
                self.wanted_lines.append(_pieces(fork, np.concatenate(answers), cuts))
        self.positions_BT = torch.from_numpy(np.concatenate(places))[None]

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
            k_grads += _summed(of_keys, pieces[-1])
            v_grads += _summed(of_values, pieces[-1])
        return None, None, *map(_joined, (q_grads, k_grads, v_grads))


def _summed(grads_1GMD: Sequence[Tensor], last: Piece) -> list[Tensor]:
    """The gradient of a line's keys, or values, part by part, from its pieces'."""
    *others, grad_1GMD = grads_1GMD
    if last.without is None:  # then it is over all of them
        for other in others:
            grad_1GMD.narrow(2, 0, other.shape[2]).add_(other)
        return [grad_1GMD]
    (first,), start = others, last.without[0]  # which ends where what is left out does
    first.narrow(2, 0, start).add_(grad_1GMD[:, :, :start])
    return [first, grad_1GMD[:, :, start:]]


def _parts(x_1THD: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Pieces' or lines' parts, in turn, with the heads in front."""
    return iter(x_1THD.transpose(1, 2).split(sizes, dim=2))


def _joined(parts_1HND: Sequence[Tensor]) -> Tensor:
    return torch.cat([part_1HND.transpose(1, 2) for part_1HND in parts_1HND], dim=1)
