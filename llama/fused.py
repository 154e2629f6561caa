"""Small operations in a row as one kernel, for sampling on a GPU, which each alone leaves idle.

```
  as written    x → fp32 · squares · mean · + eps · root · product · bf16 · product     8 kernels
  fused         x →                          norm                                       1 kernel
```
Compiled by torch when first used, for all lengths; the numbers are the same but for rounding. In
training everything stays as written, or whole blocks are compiled (`dpo/blocks.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def fused(function: Function) -> Function:
    """A pure function of tensors, the first of which says where: compiled on a GPU in inference
    mode, elsewhere as written."""

    @wraps(function)
    def either(first: Any, *rest: Any) -> Any:
        part_of_more = torch.compiler.is_compiling()
        if not part_of_more and first.is_cuda and torch.is_inference_mode_enabled():
            return compiled(function)(first, *rest)
        return function(first, *rest)

    return either  # type: ignore[return-value]


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel, or few, for tensors of all lengths; made when first called."""
    return torch.compile(function, dynamic=True)
