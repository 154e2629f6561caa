"""Small operations in a row as one kernel, for sampling on a GPU, which each alone leaves idle.

```
  as written    x → fp32 · squares · mean · + eps · root · product · bf16 · product     8 kernels
  fused         x →                          norm                                       1 kernel
```
Compiled by torch when first used, for any number of tokens, but for one width: an element's place
is found by dividing by widths, and where these are not known beforehand, that takes several times
as long as reading the element. The numbers are the same but for rounding. Where torch cannot
compile, a warning says so, and everything runs as written. In training it does anyway, or whole
blocks are compiled (`dpo/blocks.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar
from warnings import warn

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def fused(widths: int) -> Callable[[Function], Function]:
    """For a pure function of tensors, the first of which says where: compiled on a GPU in inference
    mode, elsewhere as written. widths: last dimensions of the first tensor that are always as long;
    those before them, which all tensors begin with, are tokens.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def either(first: Any, *rest: Any) -> Any:
            part_of_more = torch.compiler.is_compiling()
            if part_of_more or not first.is_cuda or not torch.is_inference_mode_enabled():
                return function(first, *rest)
            if not can_compile(first.device):
                return function(first, *rest)
            mark_widths(first.ndim - widths, first, *rest)
            return compiled(function)(first, *rest)

        return either  # type: ignore[return-value]

    return decorate


def mark_widths(tokens: int, *arguments: Any) -> None:
    """Tells the compiler that all dimensions after the first ones are always as long."""
    for x in arguments:
        if isinstance(x, Tensor):
            torch._dynamo.mark_static(x, list(range(tokens, x.ndim)))


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel, or few, for tensors of all lengths; made when first called."""
    return torch.compile(function, dynamic=True)


@cache
def can_compile(device: torch.device) -> bool:
    """Whether torch compiles for this GPU: it takes Triton, and a C compiler on the machine."""
    try:
        torch.compile(_twice)(torch.ones(2, device=device))
    except Exception as error:  # of many kinds, by what is missing
        reason = str(error).strip().partition("\n")[0]
        warn(
            f"torch cannot compile here, so this runs slower than it could: {reason}", stacklevel=2
        )
        return False
    return True


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x + x
