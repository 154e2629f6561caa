"""Forked processes of one thread each, for models too small for several threads to share.

A child begins with all that its parent has in memory, and talks with it through a pipe. It ends
when its parent does. Knows no model.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

import torch

T = TypeVar("T")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
TOLD = (ValueError, RuntimeError, MemoryError)  # what a child meets and its parent raises


def most_processes(device: torch.device) -> int:
    """How many processes this machine has room for: one a thread of torch's, where forking is safe
    (Linux) and it is the CPU that computes."""
    return torch.get_num_threads() if device.type == "cpu" and sys.platform == "linux" else 1


class Child:
    """A forked process that does `work(channel)`; `channel` is its end of the pipe.

    older: its elder siblings. remedy: what to do where it ends too early.
    """

    def __init__(
        self, work: Callable[[Connection], None], older: Sequence[Child], remedy: str
    ) -> None:
        forking = multiprocessing.get_context("fork")
        self.channel, theirs = forking.Pipe()
        ours = [self.channel, *(child.channel for child in older)]
        self.remedy = remedy
        told = theirs, ours, work, os.getpid()
        self.process: ForkProcess = forking.Process(target=_work, args=told)
        self.process.daemon = True
        with warnings.catch_warnings():
            # Python 3.12 warns of threads; those of torch sleep, and the child uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def tell(self, message: Any) -> None:
        """Sends it a message. One that is gone is found out by `hear`."""
        with suppress(ConnectionError):
            self.channel.send(message)

    def hear(self) -> Any:
        """Its next message. Raises what the child raised, if it is one of TOLD; ChildProcessError
        if it ended otherwise.
        """
        try:
            message = self.channel.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise ChildProcessError(
                f"a process ended early, with exit code {self.process.exitcode}; {self.remedy}"
            ) from None
        if isinstance(message, TOLD):
            raise message
        return message

    def end(self) -> None:
        """Ends it, if it has not ended by itself."""
        self.process.kill()
        self.process.join()
        self.channel.close()


def in_processes(work: Callable[[int], T], count: int, remedy: str) -> list[T]:
    """`[work(0), …, work(count - 1)]`, each by a child; by this process, where it is but one."""
    if count == 1:
        return [work(0)]
    children: list[Child] = []
    try:
        for part in range(count):
            child = Child(lambda channel, n=part: channel.send(work(n)), children, remedy)  # type: ignore[misc]
            children.append(child)
        return [child.hear() for child in children]
    finally:
        for child in children:
            child.end()


def keep_memory() -> None:
    """From now on, what this process frees waits in it for what it asks for next, until it ends.

    As a rule glibc hands large pieces back to the system at once, and each comes again page by
    page, every page filled with zeros. Where there is another C library, nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)  # no piece is mapped by itself
        set_option(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes as it does in a child."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _work(
    channel: Connection,
    parents: Sequence[Connection],
    work: Callable[[Connection], None],
    parent: int,
) -> None:
    if sys.platform == "linux":
        # who computes for minutes would notice only then that the parent was killed, and hold the
        # lock of its run till then
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:
            return  # it was killed just before
    for end in parents:  # a pipe breaks, and tells of the parent's end, when nobody can read it
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        work(channel)
    except TOLD as error:
        channel.send(error)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
