"""The least probable token of a top-p set, the nucleus (Holtzman et al. 2020), in many rows.

Tokens go, the least probable first, while what remains has top-p of the mass: so it is the first at
which the weights in ascending order add up to more than the rest. Sorting all of them is slow where
there are many. On a CPU they are put into buckets first, and one bucket is sorted:
```
  weights      .02 .9 .3 .05 1 .04 .6     together 2.91; for top-p 0.9 the rest is 0.29
  buckets      .02 .04 | .05 | .9 .3 1 .6
  their mass   .06     | .05 | 2.8        in the third it becomes more, 0.18 into it
  its order                    .3 .6 .9 1     at once: .3
```
Pure functions of rows of weights. Knows no logits.
"""

# B rows, V vocabulary, K blocks of N tokens, N buckets, or tokens of one bucket

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # tokens whose probabilities are summed in fp32
SHARP = 1e-6  # how well fp32 probabilities sum up; a top-p reached to within it is reached
FEW = 1024  # tokens that are sorted as fast as they are put into buckets
SHIFT = 20  # bits of a number within its bucket: eight buckets for each power of two
BUCKETS = (0x3F800000 >> SHIFT) + 1  # the last holds 1.0


def least_kept(weight_BV: Tensor, top_p: float) -> Tensor:
    """The least weight [B, 1] of each row's top-p set, of weights from 0 to 1, fp32, on a CPU."""
    few = weight_BV.shape[1] <= FEW
    return first_kept(_sorted(weight_BV), top_p) if few else _by_buckets(weight_BV, top_p)


def first_kept(ascending_BV: Tensor, top_p: float) -> Tensor:
    """The same, of weights in ascending order."""
    sums = Sums(ascending_BV)
    return ascending_BV.gather(-1, sums.find(sums.total_B1 * (1 - top_p + SHARP)))


def _by_buckets(weight_BV: Tensor, top_p: float) -> Tensor:
    # sums in fp64, one weight after the other: a row is rounded alike, whatever is beside it
    bucket_BV = (weight_BV.view(torch.int32) >> SHIFT).long()
    mass_BN = torch.zeros(len(weight_BV), BUCKETS, dtype=torch.float64)
    mass_BN.scatter_add_(1, bucket_BV, weight_BV.double())
    end_BN = mass_BN.cumsum(dim=-1)
    aim_B1 = end_BN[:, -1:] * (1 - top_p + SHARP)
    bucket_B1 = _exceeding(end_BN, aim_B1)
    before_B1 = end_BN.gather(1, bucket_B1) - mass_BN.gather(1, bucket_B1)
    row, token = (bucket_BV == bucket_B1).nonzero(as_tuple=True)
    count_B = row.bincount(minlength=len(weight_BV))
    place = torch.arange(len(row)) - (count_B.cumsum(0) - count_B)[row]
    near_BN = weight_BV.new_zeros(len(count_B), int(count_B.max()))  # filled up with zeros
    near_BN[row, place] = weight_BV[row, token]
    ascending_BN, rest_B1 = _sorted(near_BN), (aim_B1 - before_B1).clamp(min=0)
    return ascending_BN.gather(1, _exceeding(ascending_BN.double().cumsum(dim=-1), rest_B1))


class Sums:
    """The cumulative sums of each row, to be searched, of which only every BLOCK-th is ever made.

    ```
      weights   1 2 0 1 | 3 0 1 0 | 2 2 2 2      BLOCK = 4
      ends            4         8        16      aim 7.5: block 2, where 4 + 3 + 0 + 1 > 7.5
    ```
    A block is summed in fp32, the blocks and what is within one in fp64: right to 1e-7, and with
    32,000 tokens in a twentieth of the time.
    """

    def __init__(self, weight_BV: Tensor) -> None:
        spare = -weight_BV.shape[1] % BLOCK
        self.weight_BKN = (F.pad(weight_BV, (0, spare)) if spare else weight_BV).unflatten(
            1, (-1, BLOCK)
        )
        self.end_BK = self.weight_BKN.sum(dim=-1).double().cumsum(dim=-1)
        self.total_B1 = self.end_BK[:, -1:]

    def find(self, aim_B1: Tensor) -> Tensor:
        """Place [B, 1] of the first weight at which the sum exceeds the aim: one above 0.

        An aim that the total does not exceed, whatever the rounding, finds the last weight above 0.
        """
        block_B1 = _exceeding(self.end_BK, aim_B1)
        place_B1N = block_B1[:, :, None].expand(-1, -1, BLOCK)
        weight_BN = self.weight_BKN.gather(1, place_B1N)[:, 0]
        within_BN = weight_BN.double().cumsum(dim=-1)
        before_B1 = self.end_BK.gather(1, (block_B1 - 1).clamp(min=0)) * (block_B1 > 0)
        return block_B1 * BLOCK + _exceeding(within_BN, aim_B1 - before_B1)


def _exceeding(end_BN: Tensor, aim_B1: Tensor) -> Tensor:
    """Place [B, 1] of the first sum above the aim, or above whatever the last is above."""
    last_B1 = end_BN[:, -1:]
    aim_B1 = torch.minimum(aim_B1, last_B1.nextafter(last_B1.new_zeros(())))
    return torch.searchsorted(end_BN, aim_B1, right=True)


def _sorted(weight_BV: Tensor) -> Tensor:
    import numpy as np

    # values without their places: NumPy's vector sort takes a thirtieth of torch's time, and a
    # quarter less of integers; the bits of numbers that are not negative sort as they do
    return torch.from_numpy(np.sort(weight_BV.view(torch.int32).numpy())).view(torch.float32)
