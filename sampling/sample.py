"""A token from logits: temperature, top-p, one uniform per (seed, request, sample, position).

Pure functions over rows; a row's token depends on that row alone. Knows no model and no cache.
"""

# B rows, V vocabulary, K blocks of N tokens

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.fused import fused

DAMAGED = "the model's logits hold NaN or infinity: its weights are damaged"
BLOCK = 32  # tokens whose probabilities are summed in fp32
SHARP = 1e-6  # how well fp32 probabilities sum up; a top-p reached to within it is reached


def key(text: str) -> int:
    """A 63-bit number for a name, the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def streams(seed: int, requests_B: Tensor, samples_B: Tensor) -> Tensor:
    """int64 names of each row's sequence of uniforms; requests are `key(id)`, samples 0, 1, …"""
    return _mix(_mix(requests_B + key(f"seed {seed}")) + samples_B)


def uniforms(streams_B: Tensor, positions_B: Tensor) -> Tensor:
    """float64 numbers strictly between 0 and 1: the same for the same (stream, position), anywhere.

    positions_B: how many tokens the sample has already.
    """
    bits_B = _mix(streams_B + positions_B) >> 13 & (1 << 51) - 1
    return (bits_B.double() + 0.5) * 2.0**-51


def _mix(x_B: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit integers, without pattern.

    int64 wraps as uint64 would, but shifts its sign in: the masks take that out again.
    """
    x_B = (x_B + 1) * -7046029254386353131
    x_B = (x_B ^ (x_B >> 30 & (1 << 34) - 1)) * -4658895280553007687
    x_B = (x_B ^ (x_B >> 27 & (1 << 37) - 1)) * -7723592293110705685
    return x_B ^ (x_B >> 31 & (1 << 33) - 1)


def choose(logits_BV: Tensor, u_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """`draw`, of logits that are looked at first: waits for the device.

    Raises ValueError if any row's largest logit is not a finite number.
    """
    if not are_numbers(logits_BV).all():
        raise ValueError(DAMAGED)
    return draw(logits_BV, u_B, temperature, top_p)


def probabilities(logits_BV: Tensor, tokens: Sequence[int]) -> Tensor:
    """The model's own probability of each of these tokens, at temperature 1, [B, tokens] fp32."""
    return logits_BV.float().softmax(dim=-1)[:, list(tokens)]


def are_numbers(logits_BV: Tensor) -> Tensor:
    """Whether each row's largest logit is a finite number; NaN counts as larger than any."""
    return logits_BV.amax(dim=-1).isfinite()


@fused(widths=1)
def draw(logits_BV: Tensor, u_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Token ids [B]: the inverse of the truncated distribution's cumulative sum, at u.

    The distribution is softmax(logits / temperature), cut to the smallest set of most probable
    tokens whose mass reaches top_p (Holtzman et al. 2020); tokens exactly as probable as the last
    of them stay too. Temperature 0 is the most probable token, whatever top_p says.

    u_B: float64 in (0, 1). For rows that `are_numbers`.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    highest_B1 = logits_BV.amax(dim=-1, keepdim=True)

    def weights(logits_BV: Tensor) -> Tensor:
        # worked on in place: fresh memory costs more than the arithmetic
        return (logits_BV.float() - highest_B1).div_(temperature).exp_()

    weight_BV = weights(logits_BV)
    if top_p < 1:
        on_cpu = weight_BV.device.type == "cpu"
        # a GPU sorts the logits, whose half as many bits take half the time
        ascending_BV = _sorted(weight_BV) if on_cpu else weights(logits_BV.sort(dim=-1).values)
        weight_BV.mul_(_kept(weight_BV, ascending_BV, top_p))
    sums = Sums(weight_BV)
    return sums.find(u_B[:, None] * sums.total_B1)[:, 0]


def _kept(weight_BV: Tensor, ascending_BV: Tensor, top_p: float) -> Tensor:
    """1 for each row's top-p set, 0 for the rest: from below, tokens go while top_p remains."""
    sums = Sums(ascending_BV)
    first_kept_B1 = sums.find(sums.total_B1 * (1 - top_p + SHARP))
    least_B1 = ascending_BV.gather(-1, first_kept_B1)
    # written as floats: torch compares into bools, and chooses by them, many times slower on a CPU
    return torch.ge(weight_BV, least_B1, out=torch.empty_like(weight_BV))


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
        block_B1 = torch.searchsorted(self.end_BK, _below(aim_B1, self.total_B1), right=True)
        place_B1N = block_B1[:, :, None].expand(-1, -1, BLOCK)
        weight_BN = self.weight_BKN.gather(1, place_B1N)[:, 0]
        within_BN = weight_BN.double().cumsum(dim=-1)
        before_B1 = self.end_BK.gather(1, (block_B1 - 1).clamp(min=0)) * (block_B1 > 0)
        aim_B1 = _below(aim_B1 - before_B1, within_BN[:, -1:])
        return block_B1 * BLOCK + torch.searchsorted(within_BN, aim_B1, right=True)


def _below(aim_B1: Tensor, limit_B1: Tensor) -> Tensor:
    """The aim, or the next number below the limit where it is not below that."""
    return torch.minimum(aim_B1, limit_B1.nextafter(limit_B1.new_zeros(())))


def _sorted(weight_BV: Tensor) -> Tensor:
    import numpy as np

    # values without their places: NumPy's vector sort takes a thirtieth of torch's time, and a
    # quarter less of integers; the bits of numbers that are not negative sort as they do
    return torch.from_numpy(np.sort(weight_BV.view(torch.int32).numpy())).view(torch.float32)
