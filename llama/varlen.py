"""Attention of packed sequences over keys that lie anywhere, with its log-sum-exp; and the merge.

What a query sees may be cut into parts, each attended to on its own: the log-sum-exp of a part's
scores says what it weighs beside the others, so the merge is exact.
```
  a query sees   shared x y    prompt a b c    own p q        three parts, one softmax
```
On a GPU in half precision it is one call of the flash kernel; elsewhere plain products, sequence by
sequence, which is slow and serves the tests. Knows no model and no memory's owner.
"""

# N queries of all sequences, L places of keys, I sequences, P parts
# H query heads, G key-value heads, D head width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)  # all that the flash kernel knows
Part = tuple[Tensor, Tensor]  # attention NHD of one part of the keys, log-sum-exp NH in fp32


@dataclass(frozen=True)
class Spans:
    """Sequences: queries `query_I1[i]` to `query_I1[i + 1]`, `count_I[i]` keys from `start_I1[i]`.

    int32. The last start means nothing: the kernel wants one more than there are sequences.
    most_queries, most_keys: bounds over all sequences. A sequence may be without queries or keys.
    """

    query_I1: Tensor
    start_I1: Tensor
    count_I: Tensor
    most_queries: int
    most_keys: int


def attend(q_NHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, spans: Spans, causal: bool = False) -> Part:
    """Each query over its sequence's keys; causal: the last query sees all of them, the one before
    it one less. Without keys the attention is 0, and the log-sum-exp -inf.
    """
    if q_NHD.device.type != "cuda" or q_NHD.dtype not in HALF:
        return _plain(q_NHD, k_LGD, v_LGD, spans, causal)
    out_NHD, lse_HN, *_ = torch.ops.aten._flash_attention_forward(
        q_NHD,
        k_LGD,
        v_LGD,
        spans.query_I1,
        spans.start_I1,
        spans.most_queries,
        spans.most_keys,
        0.0,
        causal,
        False,
        seqused_k=spans.count_I,
    )
    lse_NH = lse_HN.T
    return out_NHD, lse_NH.masked_fill(lse_NH == torch.inf, -torch.inf)  # its mark of no keys


def merge(parts: Sequence[Part]) -> Tensor:
    """Attention NHD over all parts together; at least one of them has keys for each query."""
    lse_PNH = torch.stack([lse_NH for _, lse_NH in parts])
    weight_PNH1 = lse_PNH.softmax(dim=0).unsqueeze(-1)
    merged_NHD = sum(out.float() * weight for (out, _), weight in zip(parts, weight_PNH1))
    assert isinstance(merged_NHD, Tensor)
    return merged_NHD.to(parts[0][0].dtype)


def _plain(q_NHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, spans: Spans, causal: bool) -> Part:
    H, G, D = q_NHD.shape[1], k_LGD.shape[1], q_NHD.shape[2]
    out_NHD, lse_NH = torch.zeros_like(q_NHD), q_NHD.new_full(q_NHD.shape[:2], -torch.inf).float()
    starts, counts, bounds = (
        spans.start_I1.tolist(),
        spans.count_I.tolist(),
        spans.query_I1.tolist(),
    )
    for first, end, start, count in zip(bounds, bounds[1:], starts, counts):
        if first == end or count == 0:
            continue
        k_HLD, v_HLD = (
            x_LGD[start : start + count].repeat_interleave(H // G, dim=1).transpose(0, 1).float()
            for x_LGD in (k_LGD, v_LGD)
        )
        scores_HNL = q_NHD[first:end].transpose(0, 1).float() @ k_HLD.mT * D**-0.5
        if causal:
            seen = torch.ones_like(scores_HNL[0], dtype=torch.bool).tril(count - (end - first))
            scores_HNL = scores_HNL.masked_fill(~seen, -torch.inf)
        out_NHD[first:end] = (scores_HNL.softmax(dim=-1) @ v_HLD).transpose(0, 1).to(out_NHD.dtype)
        lse_NH[first:end] = scores_HNL.logsumexp(dim=-1).T
    return out_NHD, lse_NH
