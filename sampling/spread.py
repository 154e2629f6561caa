"""Requests over ranks and over processes, dealt like cards, the dearest first. Knows no model.

```
  what they cost    9 8 7 5 4 4        dealt to two:  9 7 4 and 8 5 4
```
Processes are for small models on a CPU, whose matrices are too small for several threads to share:
every core then samples by itself. They are forked, so the weights are there once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Protocol, TypeVar

from llama.children import Child
from llama.parallel import Group
from llama.team import Team
from sampling.batch import Sample

T = TypeVar("T")

REMEDY = "if memory was short, lower machine.slots"  # where a process ends early


@dataclass(frozen=True)
class Request:
    """A prompt that wants n samples. `id` names its randomness."""

    id: str
    token_ids: list[int]
    n: int = 1


@dataclass(frozen=True)
class Progress:
    """How far `generate` is."""

    ready: int  # samples
    running: int  # samples in progress
    tokens: int  # written


Tell = Callable[[Progress], None]


class Make(Protocol):
    """Samples of some requests, in their order; tells how far it is."""

    def __call__(self, requests: Sequence[Request], tell: Tell) -> list[list[Sample]]: ...


def dearest_first(requests: Sequence[Request], new: int) -> list[int]:
    """The requests' places by their tokens: those of the prompt, and `new` a sample at most."""
    cost = [len(request.token_ids) + request.n * new for request in requests]
    return sorted(range(len(requests)), key=lambda place: -cost[place])


def over_ranks(
    make: Callable[[list[Request]], list[list[Sample]]],
    requests: Sequence[Request],
    new: int,
    group: Group | Team,
) -> list[list[Sample]]:
    """The samples of all requests in their order, on all ranks, each having made a part."""
    order = dearest_first(requests, new)
    made = make(group.slice([requests[place] for place in order]))
    return _in_order(order, group.gather_rows(made))


def over_processes(
    make: Make, requests: Sequence[Request], new: int, count: int, tell: Tell
) -> list[list[Sample]]:
    """The samples of all requests in their order, made by so many processes of one thread each.

    Raises what a process raises, or ChildProcessError, as `Child.hear` does.
    """
    order = dearest_first(requests, new)
    parts = [[requests[place] for place in order[first::count]] for first in range(count)]
    children: list[Child] = []
    try:
        for part in parts:
            children.append(Child(partial(_serve, make=make, part=part), children, REMEDY))
        made = _listen(children, tell)
    finally:
        for child in children:
            child.end()
    dealt = [made[turn % count][turn // count] for turn in range(len(order))]
    return _in_order(order, dealt)


def _listen(children: Sequence[Child], tell: Tell) -> list[list[list[Sample]]]:
    """What each child made; meanwhile their progress, added up."""
    of = {child.channel: number for number, child in enumerate(children)}
    made: dict[int, list[list[Sample]]] = {}
    heard: dict[int, Progress] = {}
    while len(made) < len(children):
        for channel in wait([child.channel for n, child in enumerate(children) if n not in made]):
            number = of[channel]  # type: ignore[index]
            message = children[number].hear()
            if isinstance(message, Progress):
                heard[number] = message
                at = heard.values()
                tell(
                    Progress(
                        sum(p.ready for p in at),
                        sum(p.running for p in at),
                        sum(p.tokens for p in at),
                    )
                )
            else:
                made[number] = message
    return [made[number] for number in range(len(children))]


def _serve(channel: Connection, make: Make, part: list[Request]) -> None:
    channel.send(make(part, channel.send))


def _in_order(order: Sequence[int], dealt: Sequence[T]) -> list[T]:
    """Undoes the order: `dealt[i]` belongs to place `order[i]`."""
    return [one for _, one in sorted(zip(order, dealt), key=lambda both: both[0])]
