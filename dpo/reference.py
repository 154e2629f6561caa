"""What the reference thinks of the pairs: computed once, before training, and kept on disk.

The log-probabilities come from the same kernel and the same micro-batches as the first epoch's, so
that before the first update policy and reference agree to the last bit, unless there is dropout.
After that no reference model needs memory. Knows no loss and no optimizer.
"""

# P pairs

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpo.crew import REMEDY
from dpo.lines import Line, Pair, Row
from llama.children import in_processes
from llama.files import replacing
from llama.parallel import Group

FILE = "reference.safetensors"

Reference = tuple[Tensor, Tensor]


def reference_logps(
    forward: Callable[[list[Line]], Tensor],
    micros: Iterable[list[Line]],
    key: str,
    directory: Path | None,
    group: Group,
    processes: int = 1,
) -> Reference:
    """Summed response log-probabilities in fp32 (chosen [P], rejected [P]); `directory` keeps them.

    forward: lines of pairs to their log-probabilities [2 · lines], chosen and rejected in turn.
    micros: micro-batches that hold every pair once; the ranks take turns, and each one's processes.
    key: says what the numbers depend on (`reference_key`); a file with another key is replaced.
    """
    file = None if directory is None else directory / FILE
    found = _read(file, key) if file and group.is_main else None
    known: Reference | None = group.broadcast_object(found)
    if known is None:
        known = _compute(forward, list(micros), group, processes)
        if file and group.is_main:
            with replacing(file) as draft:
                save_file(dict(zip(("chosen", "rejected"), known)), draft, {"key": key})
    return known


def reference_key(weights: str, pairs: Iterable[Pair]) -> str:
    """SHA-256 over what is said of the weights and over the pairs' tokens and masks."""
    rows = (row for pair in pairs for row in (pair.chosen, pair.rejected))
    return hashlib.sha256(f"{weights} {rows_key(rows)}".encode()).hexdigest()


def rows_key(rows: Iterable[Row]) -> str:
    """SHA-256 over the tokens and masks of rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row.ids)} ".encode())
        digest.update(np.asarray(row.ids, dtype="<i4").tobytes())
        digest.update(np.asarray(row.is_response, dtype=bool).tobytes())
    return digest.hexdigest()


def _read(file: Path, key: str) -> Reference | None:
    """What the file holds, if it is whole and was made for this key; else it is made again."""
    try:
        with safe_open(file, "pt") as stored:
            if (stored.metadata() or {}).get("key") == key:
                return stored.get_tensor("chosen"), stored.get_tensor("rejected")
    except Exception:  # safetensors has an error class of its own for a damaged file
        return None
    return None


def _compute(
    forward: Callable[[list[Line]], Tensor], micros: list[list[Line]], group: Group, processes: int
) -> Reference:
    parts = group.world_size * processes

    def of_part(part: int) -> list[tuple[int, float, float]]:
        known = []
        with torch.no_grad():
            for lines in micros[group.rank * processes + part :: parts]:
                logp_P2 = forward(lines).view(-1, 2).tolist()
                known += [(line.index, c, r) for line, (c, r) in zip(lines, logp_P2)]
        return known

    known = chain.from_iterable(in_processes(of_part, processes, REMEDY))
    index, chosen, rejected = zip(*sorted(group.gather_rows(list(known))))
    assert list(index) == list(range(len(index))), "a pair is missing or there twice"
    return torch.tensor(chosen), torch.tensor(rejected)
