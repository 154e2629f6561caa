"""Attention of few queries over many keys, as a kernel of our own: what a step of decoding needs.

Such a step reads every key and value once and computes little with them, so it should take as long
as reading does. The flash kernel works on 128 queries at a time, of which all but a few would be
padding here, and the arithmetic on these takes longer than reading; this one takes 16.
```
  a program for each sequence and key-value head      16 queries (samples × heads of the group)
                                                      | keys   0 … 63  | 64 … 127 | …   in turns
```
Beside it, what keeps the step's own keys and values. Written in Triton, which comes with torch
where there is CUDA. Sizes are the fastest of several on an H200: it reads 3.7 to 4.15 TB/s where
the card copies 4.2.
"""

# N queries of all sequences, L places of keys, I sequences
# H query heads, G key-value heads, M = H / G, D head width, Q queries and K keys at a time
# A places of keys, B new keys, F = G · D

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from llama.varlen import Part, Spans

LEAST, MOST = 16, 64  # queries at a time; no side of a product on tensor cores is below 16
STAGES = 3  # blocks of keys on their way at once
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


def attend_few(q_NHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, spans: Spans) -> Part:
    """What `varlen.attend` gives, every query of a sequence over all of its keys."""
    (N, H, D), G = q_NHD.shape, k_LGD.shape[1]
    out_NHD, lse_NH = torch.empty_like(q_NHD), q_NHD.new_empty((N, H), dtype=torch.float32)
    most = spans.most_queries * H // G
    at_once = min(MOST, max(LEAST, triton.next_power_of_2(most)))
    keys, warps = (32, 2) if at_once == LEAST else (64, 4)
    _attend[len(spans.count_I), G, triton.cdiv(most, at_once)](
        q_NHD, k_LGD, v_LGD, out_NHD, lse_NH,
        spans.query_I1, spans.start_I1, spans.count_I, D**-0.5,
        H=H, G=G, D=D, Q=at_once, K=keys, num_warps=warps, num_stages=STAGES,
    )  # fmt: skip
    return out_NHD, lse_NH


def keep(k_AGD: Tensor, v_AGD: Tensor, place_B: Tensor, k_BGD: Tensor, v_BGD: Tensor) -> None:
    """Puts keys and values in their places: `k_AGD[place_B] = k_BGD`, and the values' likewise."""
    width = k_BGD.shape[1] * k_BGD.shape[2]
    _keep[(len(place_B),)](
        k_AGD, v_AGD, place_B, k_BGD.flatten(1), v_BGD.flatten(1),
        k_BGD.stride(0), v_BGD.stride(0), F=width, BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _keep(  # type: ignore[no-untyped-def]  # of Triton's types, which it finds out by itself
    k_AF, v_AF, place_B, k_BF, v_BF, k_step, v_step, F: tl.constexpr, BLOCK: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    column_F = tl.arange(0, BLOCK)
    real_F, to_F = column_F < F, tl.load(place_B + b) * F + column_F
    tl.store(k_AF + to_F, tl.load(k_BF + b * k_step + column_F, mask=real_F), mask=real_F)
    tl.store(v_AF + to_F, tl.load(v_BF + b * v_step + column_F, mask=real_F), mask=real_F)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend(  # type: ignore[no-untyped-def]
    q_NHD, k_LGD, v_LGD, out_NHD, lse_NH, query_I1, start_I1, count_I, scale,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    sequence, g, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    M: tl.constexpr = H // G
    first = tl.load(query_I1 + sequence)
    rows = (tl.load(query_I1 + sequence + 1) - first) * M
    if part * Q >= rows:
        return
    start, count = tl.load(start_I1 + sequence).to(tl.int64), tl.load(count_I + sequence)
    row_Q = part * Q + tl.arange(0, Q)
    at_Q = (first + row_Q // M) * H + g * M + row_Q % M  # in [N, H]
    column_D, real_Q1 = tl.arange(0, D), (row_Q < rows)[:, None]
    q_QD = tl.load(q_NHD + at_Q[:, None] * D + column_D, mask=real_Q1, other=0.0)
    most_Q = tl.full([Q], -float("inf"), tl.float32)  # score by now, in powers of two
    total_Q = tl.zeros([Q], tl.float32)  # of the weights, beside that of the largest score
    sum_QD = tl.zeros([Q, D], tl.float32)
    for begin in range(0, count, K):
        key_K = begin + tl.arange(0, K)
        real_K = key_K < count
        place_KD = (start + key_K)[:, None] * (G * D) + g * D + column_D
        k_KD = tl.load(k_LGD + place_KD, mask=real_K[:, None], other=0.0)
        score_QK = tl.dot(q_QD, tl.trans(k_KD)) * (scale * LOG2E)
        score_QK = tl.where(real_K[None, :], score_QK, -float("inf"))
        higher_Q = tl.maximum(most_Q, tl.max(score_QK, 1))
        weight_QK, shrink_Q = tl.exp2(score_QK - higher_Q[:, None]), tl.exp2(most_Q - higher_Q)
        v_KD = tl.load(v_LGD + place_KD, mask=real_K[:, None], other=0.0)
        sum_QD = sum_QD * shrink_Q[:, None] + tl.dot(weight_QK.to(v_KD.dtype), v_KD)
        total_Q = total_Q * shrink_Q + tl.sum(weight_QK, 1)
        most_Q = higher_Q
    out_QD = tl.where(total_Q[:, None] > 0, sum_QD / total_Q[:, None], 0.0)
    tl.store(
        out_NHD + at_Q[:, None] * D + column_D, out_QD.to(out_NHD.dtype.element_ty), mask=real_Q1
    )
    tl.store(lse_NH + at_Q, most_Q * LN2 + tl.log(total_Q), mask=row_Q < rows)
