"""Requests over ranks and over processes, dealt like cards, the dearest first. Knows no model.

```
  what they cost    9 8 7 5 4 4        dealt to two:  9 7 4 and 8 5 4
```
Processes are for small models on a CPU, whose matrices are too small for several threads to share:
every core then samples by itself. They are forked, so the weights are there once.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Protocol, TypeVar

import torch

from llama.parallel import Group
from llama.team import Team
from sampling.batch import Sample

T = TypeVar("T")


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

    Raises what a process raises, if it is a ValueError; ChildProcessError if one ends too early.
    """
    order = dearest_first(requests, new)
    parts = [[requests[place] for place in order[first::count]] for first in range(count)]
    children: list[Child] = []
    try:
        for part in parts:
            children.append(Child(make, part, children))
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
            if isinstance(message, ValueError):
                raise message
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


class Child:
    """A forked process that makes samples of its part."""

    def __init__(self, make: Make, part: list[Request], older: Sequence[Child]) -> None:
        forking = multiprocessing.get_context("fork")
        self.channel, theirs = forking.Pipe(duplex=False)
        ours = [self.channel, *(child.channel for child in older)]
        work = theirs, ours, make, part
        self.process: ForkProcess = forking.Process(target=_work, args=work)
        self.process.daemon = True
        with warnings.catch_warnings():
            # Python 3.12 warns of threads; those of torch sleep, and the child uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def hear(self) -> Progress | ValueError | list[list[Sample]]:
        """Its next message. Raises ChildProcessError if none will come."""
        try:
            message: Progress | ValueError | list[list[Sample]] = self.channel.recv()
        except EOFError:
            self.process.join()
            raise ChildProcessError(
                f"a sampling process ended early, with exit code {self.process.exitcode}; "
                "if memory was short, lower machine.slots"
            ) from None
        return message

    def end(self) -> None:
        """Ends it, if it has not ended by itself."""
        self.process.kill()
        self.process.join()
        self.channel.close()


def _work(
    channel: Connection, parents: Sequence[Connection], make: Make, part: list[Request]
) -> None:
    for end in parents:  # a pipe breaks, and tells of the parent's end, when nobody can read it
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        channel.send(make(part, channel.send))
    except ValueError as error:
        channel.send(error)
    except BrokenPipeError:
        pass  # the parent is gone


def _in_order(order: Sequence[int], dealt: Sequence[T]) -> list[T]:
    """Undoes the order: `dealt[i]` belongs to place `order[i]`."""
    return [one for _, one in sorted(zip(order, dealt), key=lambda both: both[0])]
