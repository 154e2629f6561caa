"""Runs one function in several gloo processes, with a hard time-out. For tests only."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def run_ranks(
    work: Callable[..., None], world_size: int, *arguments: Any, limit_s: float = 60.0
) -> list[int | None]:
    """Calls `work(*arguments)` in `world_size` fresh processes, each with torchrun's environment;
    returns exit codes.

    `work` must be importable (a module's function). Whoever is still running after `limit_s` is
    killed: code -9.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    processes = [
        context.Process(target=_enter, args=(work, rank, world_size, port, arguments), daemon=True)
        for rank in range(world_size)
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


def _enter(
    work: Callable[..., None], rank: int, world_size: int, port: int, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    work(*arguments)
