"""Requests over ranks and over processes, dealt like cards, the dearest first. Knows no model.

```
  what they cost    9 8 7 5 4 4        dealt to two:  9 7 4 and 8 5 4
```
Processes are for small models on a CPU, whose matrices are too small for several threads to share:
every core then samples by itself. They are forked, so the weights are there once.

What is asked comes in parts. Each is given out when it is made, while the next one is begun: so the
work may be kept part by part, and nobody waits for a part's last sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Protocol, TypeVar

from llama.children import Child, keep_memory
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


Parts = Sequence[Sequence[Request]]
Made = list[list[Sample]]  # the samples of a part's requests, in their order


class Make(Protocol):
    """Each part's samples in turn; tells how far it is."""

    def __call__(self, parts: Parts, tell: Tell) -> Iterator[Made]: ...


def dearest_first(requests: Sequence[Request], new: int) -> list[int]:
    """The requests' places by their tokens: those of the prompt, and `new` a sample at most."""
    cost = [len(request.token_ids) + request.n * new for request in requests]
    return sorted(range(len(requests)), key=lambda place: -cost[place])


def over_ranks(
    make: Callable[[Parts], Iterator[Made]], parts: Parts, new: int, group: Group | Team
) -> Iterator[Made]:
    """Each part's samples in turn, on all ranks, each having made a share."""
    orders = [dearest_first(part, new) for part in parts]
    mine = [group.slice([part[at] for at in order]) for part, order in zip(parts, orders)]
    for order, made in zip(orders, make(mine)):
        yield _in_order(order, group.gather_rows(made))


def over_processes(make: Make, parts: Parts, new: int, count: int, tell: Tell) -> Iterator[Made]:
    """Each part's samples in turn, made by so many processes of one thread each.

    Raises what a process raises, or ChildProcessError, as `Child.hear` does.
    """
    orders = [dearest_first(part, new) for part in parts]
    children: list[Child] = []
    try:
        for first in range(count):
            share = [[part[at] for at in order[first::count]] for part, order in zip(parts, orders)]
            children.append(Child(partial(_serve, make=make, share=share), children, REMEDY))
        for order, made in zip(orders, _listen(children, tell, len(parts))):
            dealt = [made[turn % count][turn // count] for turn in range(len(order))]
            yield _in_order(order, dealt)
    finally:
        for child in children:
            child.end()


def _listen(children: Sequence[Child], tell: Tell, parts: int) -> Iterator[list[Made]]:
    """What each child made of each part; meanwhile their progress, added up."""
    of = {child.channel: number for number, child in enumerate(children)}
    made: list[deque[Made]] = [deque() for _ in children]
    owed = [parts] * len(children)
    heard: dict[int, Progress] = {}
    for _ in range(parts):
        while not all(made):
            for channel in wait([child.channel for n, child in enumerate(children) if owed[n]]):
                number = of[channel]  # type: ignore[index]
                message = children[number].hear()
                if isinstance(message, Progress):
                    heard[number] = message
                    tell(_added(heard.values()))
                else:
                    made[number].append(message)
                    owed[number] -= 1
        yield [done.popleft() for done in made]


def _added(several: Collection[Progress]) -> Progress:
    return Progress(
        sum(one.ready for one in several),
        sum(one.running for one in several),
        sum(one.tokens for one in several),
    )


def _serve(channel: Connection, make: Make, share: Parts) -> None:
    keep_memory()  # keys and values move to a larger place again and again
    for made in make(share, channel.send):
        channel.send(made)


def _in_order(order: Sequence[int], dealt: Sequence[T]) -> list[T]:
    """Undoes the order: `dealt[i]` belongs to place `order[i]`."""
    return [one for _, one in sorted(zip(order, dealt), key=lambda both: both[0])]
