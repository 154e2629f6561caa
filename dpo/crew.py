"""Processes that compute a step's gradients side by side, on one copy of the weights.

```
  parent   part 0 → gradients ┐
  child    part 1 → gradients ┴─▶ added up, clipped ──▶ AdamW on the weights, which all of them see
```
For models on a CPU that are too small for several threads to share. Knows no data and no loss.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from llama.children import Child

Measured = dict[str, float]
Work = Callable[[int, int], Measured]  # (step, part): adds the part's gradients to the weights'
REMEDY = "if memory was short, lower micro_tokens; OMP_NUM_THREADS=1 trains in one process"
ALIGNED = 64  # bytes: a line of the processor's cache


@contextmanager
def crew(model: nn.Module, work: Work, count: int) -> Iterator[Callable[[int], list[Measured]]]:
    """Gives a function: a step's number → what `work` measured of each of its `count` parts.

    All parts' gradients are then in the weights'. With one part it is `work`, and no more. To be
    called with one thread (`llama.children.one_thread`): a second one, even when it has nothing to
    do, takes a child's core for a while. Raises what `work` raises in any process, as `Child.hear`
    does.
    """
    if count == 1:
        yield lambda step: [work(step, 0)]
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight, shared in zip(weights, _shared_like(weights)):
        shared.copy_(weight.detach())
        weight.data = shared
    gradients = [_shared_like(weights) for _ in range(1, count)]
    children: list[Child] = []
    try:
        for part, own in enumerate(gradients, start=1):
            serve = partial(_serve, weights=weights, gradients=own, part=part, work=work)
            children.append(Child(serve, children, REMEDY))
        yield partial(_step, weights, gradients, children, work)
    finally:
        for child in children:
            child.end()


def _step(
    weights: Sequence[Tensor],
    gradients: list[list[Tensor]],
    children: Sequence[Child],
    work: Work,
    step: int,
) -> list[Measured]:
    for child in children:
        child.tell(step)
    measured = [work(step, 0)]
    for child, theirs in zip(children, gradients):
        measured.append(child.hear())
        _add(weights, theirs)
    return measured


def _add(weights: Sequence[Tensor], gradients: list[Tensor]) -> None:
    ours = [weight.grad for weight in weights if weight.grad is not None]
    torch._foreach_add_(ours, gradients)


def _serve(
    channel: Connection,
    weights: Sequence[Tensor],
    gradients: list[Tensor],
    part: int,
    work: Work,
) -> None:
    """A child's life: it is told a step, adds up gradients where its parent sees them, answers."""
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient
    while True:
        step = channel.recv()
        torch._foreach_zero_(gradients)
        channel.send(work(step, part))


def _shared_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Zeros in memory that this process shares with those it forks."""
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
    whole = torch.frombuffer(mmap.mmap(-1, sum(sizes)), dtype=torch.uint8)
    parts = zip(tensors, whole.split(sizes))
    return [part[: like.nbytes].view(like.dtype).view(like.shape) for like, part in parts]
