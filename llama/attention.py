"""Which token sees which. The model hands queries, keys and values to an `Attend`.

Here are ordinary rows, and rows after a prefix that they share. Pairs that share a prompt have
theirs in `dpo/fork.py` and `dpo/packed.py`, the cache in `llama/cache.py` and `llama/arena.py`.
Knows no weights and no text.
"""

# B rows, T tokens, H query heads, G key-value heads, D head width

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


class Attend(Protocol):
    """What a forward pass needs to know about its rows."""

    @property
    def positions_BT(self) -> Tensor:
        """int64 place of each token in its own text; [1, T] if it is the same in every row."""

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Attention output BTHD, for queries and keys already rotated; a cache needs the layer."""


@runtime_checkable
class AttendWanted(Attend, Protocol):
    """One that knows which tokens are wanted: the last block then computes no others' queries."""

    def wanted(self, layer: int, q_1QHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Attention output 1QHD, for the wanted tokens' queries and the keys of all."""


class CausalRows:
    """Every row one text from its first token on.

    ```
      a b c .      a sees a · b sees ab · c sees abc: padding on the right needs no mask
    ```
    """

    def __init__(self, T: int, device: torch.device | str | None = None) -> None:
        self.positions_BT = torch.arange(T, device=device)[None]

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        return _attention(q_BTHD, k_BTGD, v_BTGD, is_causal=True)


class AfterPrefix:
    """Every row one text after a prefix that all of them share, whose keys and values are there.

    `prefix(layer)` gives keys and values [C, G, D] of its C tokens.
    ```
      prefix p q   row a b .      a sees pq a · b sees pq ab
    ```
    """

    def __init__(
        self, C: int, T: int, prefix: Callable[[int], tuple[Tensor, Tensor]], device: torch.device
    ) -> None:
        self.prefix = prefix
        self.positions_BT = torch.arange(C, C + T, device=device)[None]
        self.sees_TN = torch.ones(T, C + T, dtype=torch.bool, device=device).tril(C)

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        B = len(q_BTHD)
        k_BNGD, v_BNGD = (
            torch.cat((before_CGD.expand(B, -1, -1, -1), own_BTGD), dim=1)
            for before_CGD, own_BTGD in zip(self.prefix(layer), (k_BTGD, v_BTGD))
        )
        return _attention(q_BTHD, k_BNGD, v_BNGD, sees_B1TT=self.sees_TN)


def _attention(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    sees_B1TT: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BTGD.transpose(1, 2),
        v_BTGD.transpose(1, 2),
        attn_mask=sees_B1TT,
        is_causal=is_causal,
        enable_gqa=q_BTHD.shape[2] != k_BTGD.shape[2],
    )
    return out_BHTD.transpose(1, 2)
