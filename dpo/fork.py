"""Attention for a prompt that is read once for its two answers. Knows no weights, no loss.

Lines lie side by side, padded; without padding, on a CPU, see `dpo/packed.py`.
```
  line       p p p c c r r r .        prompt, chosen, rejected, padding
  position   0 1 2 3 4 3 4 5 0        where the rejected answer stood on its own
  unfolded   p p p c c .              for attention alone, two ordinary causal rows; all else in
             p p p r r r              the model, which is most of it, sees the line
```
Exact: no token sees another one than it would in a row of its own.
"""

# B lines, T tokens, U tokens of an unfolded row, H query heads, G key-value heads, D head width

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llama.attention import CausalRows

Ints = np.ndarray
Fork = tuple[int, int, int]  # tokens of a line: shared, the chosen answer's, the rejected one's


class Forked:
    """The `Attend` of such lines: unfolds queries, keys and values, and folds the output back.

    unfold [2B, U]: where in the flattened [B·T] each token of the unfolded rows stands. Padding
      repeats place 0, which is harmless behind a causal row.
    fold [B, T]: where in the flattened [2B·U] each token's output stands.
    """

    def __init__(self, positions_BT: Tensor, unfold_2BU: Tensor, fold_BT: Tensor) -> None:
        self.positions_BT, self.unfold_2BU, self.fold_BT = positions_BT, unfold_2BU, fold_BT
        self.rows = CausalRows(unfold_2BU.shape[1], unfold_2BU.device)

    def to(self, device: torch.device) -> Forked:
        """The same on a device."""
        return Forked(*(x.to(device) for x in (self.positions_BT, self.unfold_2BU, self.fold_BT)))

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Attention output, BTHD."""
        unfolded = (_take(x, self.unfold_2BU) for x in (q_BTHD, k_BTGD, v_BTGD))
        return _take(self.rows(layer, *unfolded), self.fold_BT)


def forked(forks: Sequence[Fork], T: int) -> Forked:
    """For lines of such parts, padded to T."""
    B, U = len(forks), max(shared + max(c, r) for shared, c, r in forks)
    positions_BT, fold_BT = np.zeros((B, T), dtype=np.int64), np.zeros((B, T), dtype=np.int64)
    unfold_B2U = np.zeros((B, 2, U), dtype=np.int64)
    place_T = np.arange(T)
    for b, (shared, chosen, rejected) in enumerate(forks):
        first, end, alone = shared + chosen, shared + chosen + rejected, shared + rejected
        positions_BT[b, :first] = place_T[:first]
        positions_BT[b, first:end] = place_T[shared:alone]
        unfold_B2U[b, 0, :first] = b * T + place_T[:first]
        unfold_B2U[b, 1, :shared] = b * T + place_T[:shared]
        unfold_B2U[b, 1, shared:alone] = b * T + place_T[first:end]
        fold_BT[b, :first] = 2 * b * U + place_T[:first]
        fold_BT[b, first:end] = (2 * b + 1) * U + place_T[shared:alone]
    return Forked(*map(torch.from_numpy, (positions_BT, unfold_B2U.reshape(2 * B, U), fold_BT)))


def _take(x: Tensor, places: Tensor) -> Tensor:
    """Tokens of x [rows, tokens, …] by their place in its first two dimensions, flattened."""
    taken = x.flatten(0, 1).index_select(0, places.flatten())
    return taken.view(*places.shape, *x.shape[2:])
