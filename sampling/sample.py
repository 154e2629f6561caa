"""A token from logits: temperature, top-p, one uniform per (seed, request, sample, position).

Pure functions over rows; a row's token depends on that row alone. Knows no model and no cache.
"""

# B rows, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from llama.fused import fused
from sampling.nucleus import Sums, first_kept, least_kept

DAMAGED = "the model's logits hold NaN or infinity: its weights are damaged"
COLDEST = 2.0**-126  # the smallest normal float32: 0 divided by less may be NaN
CACHED = 2**18  # logits that a CPU works on at once: few enough to stay in its cache


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
    if logits_BV.device.type != "cpu":
        return draw(logits_BV, u_B, temperature, top_p)
    some = max(1, CACHED // logits_BV.shape[1])
    parts = zip(logits_BV.split(some), u_B.split(some))
    return torch.cat([draw(logits, u, temperature, top_p) for logits, u in parts])


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
    of them stay too. Temperature 0, or below COLDEST, is the most probable token, whatever top_p
    says.

    u_B: float64 in (0, 1). For rows that `are_numbers`.
    """
    if temperature < COLDEST:
        return logits_BV.argmax(dim=-1)
    highest_B1 = logits_BV.amax(dim=-1, keepdim=True)

    def weights(logits_BV: Tensor) -> Tensor:
        # worked on in place: fresh memory costs more than the arithmetic
        return (logits_BV.float() - highest_B1).div_(temperature).exp_()

    weight_BV = weights(logits_BV)
    if top_p < 1:
        if weight_BV.device.type == "cpu":
            least_B1 = least_kept(weight_BV, top_p)
        else:  # a GPU sorts the logits, whose half as many bits take half the time
            least_B1 = first_kept(weights(logits_BV.sort(dim=-1).values), top_p)
        # written as floats: torch compares into bools, and chooses by them, far slower on a CPU
        weight_BV.mul_(torch.ge(weight_BV, least_B1, out=torch.empty_like(weight_BV)))
    sums = Sums(weight_BV)
    return sums.find(u_B[:, None] * sums.total_B1)[:, 0]
