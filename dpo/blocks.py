"""How blocks run in training: as written, compiled, computed again in the backward pass.

Put on a model from outside and taken off again; the model never mentions it. Knows no rank, no data
and no loss.

```
  recompute    kept of a block for its backward pass       computed again
  none         all that its operations need                nothing
  selective    outputs of matrix products and attention    norms, rotation, SwiGLU, dropout
  full         its input                                   everything
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llama.model import Llama

_aten = torch.ops.aten
KEPT = {  # by `selective`: what takes most of the time; the rest takes most of the memory
    _aten.mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
VERSIONS = 64  # of a compiled block: by kinds of shapes, ways to attend, with gradients or not


@contextmanager
def running_blocks(model: Llama, recompute: str = "none", compiled: bool = False) -> Iterator[None]:
    """Inside, the model's blocks run as asked: `none`, `selective` or `full` recomputation; as
    compiled by torch or not. The numbers are the same, compiled ones but for rounding."""
    blocks = list(model.layers) if compiled or recompute != "none" else []
    for block in blocks:  # inside of what FSDP hooks onto, so that it gathers for both passes
        forward = _recomputing(block.forward, recompute)
        block.forward = torch.compile(forward) if compiled else forward
    try:
        with _many_versions() if compiled else nullcontext():
            yield
    finally:
        for block in blocks:
            del block.forward


def _recomputing(forward: Callable[..., Any], recompute: str) -> Callable[..., Any]:
    if recompute == "none":
        return forward
    again = partial(checkpoint, forward, use_reentrant=False)
    if recompute == "full":
        return again
    return partial(again, context_fn=partial(create_selective_checkpoint_contexts, _policy))


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _many_versions() -> AbstractContextManager[None]:
    # past its limit of 8 versions torch.compile would quietly go on uncompiled
    import torch._dynamo  # seconds, that only those who compile should wait

    patch: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=VERSIONS)
    return patch
