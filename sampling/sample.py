"""A token from logits: temperature, top-p, one uniform per (seed, request, sample, position).

Pure functions over rows; a row's token depends on that row alone. Knows no model and no cache.
"""

# B rows, V vocabulary

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

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
    """Token ids [B]: the inverse of the truncated distribution's cumulative sum, at u.

    The distribution is softmax(logits / temperature), cut to the smallest set of most probable
    tokens whose mass reaches top_p (Holtzman et al. 2020); tokens exactly as probable as the last
    of them stay too. Temperature 0 is the most probable token, whatever top_p says.

    u_B: float64 in (0, 1). Raises ValueError if any row's largest logit is not a finite number.
    """
    largest_B1 = logits_BV.amax(dim=-1, keepdim=True)  # NaN wins
    if not largest_B1.isfinite().all():
        raise ValueError("the model's logits hold NaN or infinity: its weights are damaged")
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    weight_BV = ((logits_BV.float() - largest_B1) / temperature).softmax(dim=-1)
    if top_p < 1:
        weight_BV *= _kept(weight_BV, top_p)
    cumulative_BV = weight_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1]
    # strictly below the total, whatever the rounding: so the token found has some weight
    aim_B = torch.minimum(u_B * total_B, total_B.nextafter(total_B.new_zeros(())))
    return torch.searchsorted(cumulative_BV, aim_B[:, None], right=True)[:, 0]


def _kept(weight_BV: Tensor, top_p: float) -> Tensor:
    """1 for each row's top-p set, 0 for the rest: from below, tokens go while top_p remains."""
    ascending_BV = _sorted(weight_BV)
    cumulative_BV = ascending_BV.cumsum(dim=-1, dtype=torch.float64)
    spare_B1 = cumulative_BV[:, -1:] * (1 - top_p + SHARP)
    gone_B1 = torch.searchsorted(cumulative_BV, spare_B1, right=True)
    least_B1 = ascending_BV.gather(-1, gone_B1.clamp_(max=weight_BV.shape[-1] - 1))
    # written as floats: torch compares into bools, and chooses by them, many times slower on a CPU
    return torch.ge(weight_BV, least_B1, out=torch.empty_like(weight_BV))


def _sorted(weight_BV: Tensor) -> Tensor:
    if weight_BV.device.type != "cpu":
        return weight_BV.sort(dim=-1).values
    import numpy as np

    # values without their places: NumPy's vector sort takes a thirtieth of torch's time
    return torch.from_numpy(np.sort(weight_BV.numpy()))
