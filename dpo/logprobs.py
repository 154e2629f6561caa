"""Log-probabilities of responses, in fp32 and *summed* over tokens. Knows no loss and no rank.

The shift, once and for all: the logits at a token say what comes *after* it.
```
  tokens        <s>  the  answer  is   4    </s>
  is_response    0    0     0     0    1     1
  scored by      -   <s>   the  answer is    4      (token t by the logits at t-1)
```
"""

# B rows, T tokens, C width, V vocabulary, N scored tokens (of all rows), S sequences (responses)

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# 64 MB of fp32 logits at a time; their gradient and their softmax take as much again. Not less than
# that: glibc keeps freed blocks of up to 32 MB, in fragments, which took 1.6 GB instead of 0.2
CHUNK_LOGITS = 2**24


def chunk_for(vocab_size: int) -> int:
    """How many tokens' logits fit in CHUNK_LOGITS numbers."""
    return max(1, CHUNK_LOGITS // vocab_size)


def response_logps(logits_BTV: Tensor, tokens_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    """Summed log-probability [B] in nats of each row's response tokens.

    Token t is scored by the logits at t-1, so a first token is never scored. A row without response
    tokens gets 0. Raises ValueError if the shapes do not belong together.
    """
    if not logits_BTV.shape[:2] == tokens_BT.shape == is_response_BT.shape:
        shapes = [tuple(t.shape) for t in (logits_BTV, tokens_BT, is_response_BT)]
        raise ValueError(f"[B, T, V], [B, T] and [B, T] expected, found {shapes}")
    logp_BT = -cross_entropy(logits_BTV[:, :-1], tokens_BT[:, 1:])
    # where, not times: an inf behind the mask must not become a NaN
    return torch.where(is_response_BT[:, 1:].bool(), logp_BT, 0.0).sum(dim=1)


def cross_entropy(logits_V: Tensor, target: Tensor) -> Tensor:
    """-log softmax(logits)[target], shaped like `target`, in fp32 (float64 stays float64)."""
    # fp32: bf16 sums of 500 log-probs lose the margin
    wide_V = logits_V if logits_V.dtype == torch.float64 else logits_V.float()
    loss = F.cross_entropy(wide_V.flatten(0, -2), target.flatten(), reduction="none")
    return loss.view_as(target)


def chunked_logps(
    hidden_NC: Tensor,
    project: Callable[[Tensor], Tensor],
    target_N: Tensor,
    count_S: Tensor,
    chunk: int,
) -> Tensor:
    """Summed log-probability [S] of each sequence, without ever holding all logits.

    hidden_NC: of the tokens whose logits score the tokens target_N; one sequence's are neighbours,
      count_S (int64) says how many each has.
    project: hidden [..., C] to logits [..., V].
    chunk: tokens at a time, at most; chunks are of one size, for the last one's blocks should be
      given back too. Each is computed again in the backward pass, unless it is all.
    """

    def logps(hidden_NC: Tensor, target_N: Tensor) -> Tensor:
        return -cross_entropy(project(hidden_NC), target_N)

    chunks = -(-len(target_N) // chunk)
    if chunks <= 1:
        logp_N = logps(hidden_NC, target_N)
    else:
        even = -(-len(target_N) // chunks)
        parts = zip(hidden_NC.split(even), target_N.split(even), strict=True)
        again = partial(checkpoint, logps, use_reentrant=False, preserve_rng_state=False)
        logp_N = torch.cat([again(h_NC, t_N) for h_NC, t_N in parts])
    # segments, not index_add: atomics would add in another order each run
    return torch.segment_reduce(logp_N, "sum", lengths=count_S, unsafe=True)
