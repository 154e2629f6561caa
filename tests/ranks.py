"""Runs one function in several gloo processes, with a hard time-out. For tests only."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def run_ranks(
    work: Callable[..., None],
    world_size: int,
    *arguments: Any,
    limit_s: float = 60.0,
    machines: int = 1,
) -> list[int | None]:
    """Calls `work(*arguments)` in `world_size` new processes, each with the environment that
    torchrun gives it on one of `machines`; returns exit codes.

    They are forked by one that has imported torch, which takes seconds, and done nothing else.
    `work` must be importable (a module's function). Whoever is still running after `limit_s` is
    killed: code -9.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp"])
    here = world_size // machines
    places = [(rank, rank % here, world_size, here, port) for rank in range(world_size)]
    processes = [
        context.Process(target=_enter, args=(work, place, arguments), daemon=True)
        for place in places
    ]
    end = time.monotonic() + limit_s
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _enter(work: Callable[..., None], place: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    os.environ.update(zip(names, map(str, place)))
    os.environ.update(MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    work(*arguments)
