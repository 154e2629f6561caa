"""Attention of packed sequences over keys that lie anywhere, with its log-sum-exp; and the merge.

What a query sees may be cut into parts, each attended to on its own: the log-sum-exp of a part's
scores says what it weighs beside the others, so the merge is exact.
```
  a query sees   shared x y    prompt a b c    own p q        three parts, one softmax
```
On a GPU in half precision it is one kernel: torch's flash kernel, or ours where queries are few
(`llama/decoding.py`). Elsewhere it is plain products, sequence by sequence, which is slow and
serves the tests. Knows no model and no memory's owner.
"""

# N queries of all sequences, L places of keys, I sequences, P parts
# H query heads, G key-value heads, R = H / G, D head width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from llama.fused import can_compile, fused

HALF = (torch.float16, torch.bfloat16)  # all that the flash kernel knows
FEW = 1024  # queries of a sequence, up to which ours is faster
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
    it one less. Without keys the attention is 0, and the log-sum-exp infinite.
    """
    if q_NHD.device.type != "cuda" or q_NHD.dtype not in HALF:
        return _plain(q_NHD, k_LGD, v_LGD, spans, causal)
    if not causal and spans.most_queries <= FEW and has_kernels(k_LGD):
        from llama.decoding import attend_few

        return attend_few(q_NHD, k_LGD, v_LGD, spans)
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
    return out_NHD, lse_HN.T


def has_kernels(k_LGD: Tensor) -> bool:
    """Whether `llama/decoding.py` can be imported, and is made for such keys."""
    widths = k_LGD.shape[-1] in (16, 32, 64, 128, 256)
    return k_LGD.is_cuda and k_LGD.dtype in HALF and widths and can_compile(k_LGD.device)


def merge(parts: Sequence[Part]) -> Tensor:
    """Attention NHD over all parts together; at least one of them has keys for each query."""
    if len(parts) == 1:
        return parts[0][0]
    outs, lses = zip(*parts)
    return _merged(*outs, *lses)


@fused(widths=2)
def _merged(*outs_and_lses: Tensor) -> Tensor:
    P = len(outs_and_lses) // 2
    outs, lses = outs_and_lses[:P], outs_and_lses[P:]
    # the kernel says +inf where there are no keys
    lses = tuple(lse_NH.masked_fill(lse_NH == torch.inf, -torch.inf) for lse_NH in lses)
    most_NH = reduce(torch.maximum, lses)
    weights = [(lse_NH - most_NH).exp() for lse_NH in lses]
    weighted = [out.float() * weight.unsqueeze(-1) for out, weight in zip(outs, weights)]
    merged_NHD = reduce(torch.add, weighted) / reduce(torch.add, weights).unsqueeze(-1)
    return merged_NHD.to(outs[0].dtype)


def _plain(q_NHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, spans: Spans, causal: bool) -> Part:
    G, D = k_LGD.shape[1:]
    out_NHD, lse_NH = torch.zeros_like(q_NHD), q_NHD.new_full(q_NHD.shape[:2], -torch.inf).float()
    q_GRND, out_GRND = (x.unflatten(1, (G, -1)).permute(1, 2, 0, 3) for x in (q_NHD, out_NHD))
    lse_GRN = lse_NH.unflatten(1, (G, -1)).permute(1, 2, 0)
    k_G1LD, v_G1LD = (x.transpose(0, 1).unsqueeze(1) for x in (k_LGD, v_LGD))
    bounds = spans.query_I1.tolist()
    keys = zip(spans.start_I1.tolist(), spans.count_I.tolist())
    for first, end, (start, count) in zip(bounds, bounds[1:], keys):
        if first == end or count == 0:
            continue
        queries, seen = slice(first, end), slice(start, start + count)
        k, v = k_G1LD[:, :, seen].float(), v_G1LD[:, :, seen].float()
        scores_GRNL = q_GRND[:, :, queries].float() @ k.mT * D**-0.5
        if causal:
            visible = torch.ones_like(scores_GRNL[0, 0], dtype=torch.bool)
            scores_GRNL.masked_fill_(~visible.tril(count - (end - first)), -torch.inf)
        most_GRN1 = scores_GRNL.amax(dim=-1, keepdim=True)
        weights_GRNL = (scores_GRNL - most_GRN1).exp_()
        total_GRN1 = weights_GRNL.sum(dim=-1, keepdim=True)
        out_GRND[:, :, queries] = weights_GRNL @ v / total_GRN1
        lse_GRN[:, :, queries] = (most_GRN1 + total_GRN1.log()).squeeze(-1)
    return out_NHD, lse_NH
