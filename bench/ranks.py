"""Several processes of one command, each a rank, and what they tell. Knows no work of theirs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence


def run_ranks(
    module: str, arguments: Sequence[str], ranks: int, environ: Mapping[str, str] | None = None
) -> list[str]:
    """What each of the processes `python -m module …` prints, by rank.

    Raises RuntimeError if one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(environ or {}), **where, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(ranks)
    ]  # fmt: skip
    told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a rank failed; its output says why")
    return told
