"""The metrics of a run, a JSON line a step.

Nothing stands there that differs between two runs of the same thing, such as a speed, so that a
resumed run's file is the uninterrupted run's file. Knows no model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llama.files import naming

FILE = "train.jsonl"


class Records:
    """Appends to `directory/train.jsonl`, from byte `start` on: what a killed run wrote after its
    last save goes. Without a directory nothing is kept. What a line has, a `board`
    (`dpo.telemetry`) gets too.

    Raises ValueError if the file is shorter than `start`.
    """

    def __init__(self, directory: Path | None, start: int = 0, board: Any = None) -> None:
        self._stream, self._board = None, board
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / FILE
        size = file.stat().st_size if file.exists() else 0
        if size < start:
            raise ValueError(
                f"{file} lost bytes ({size} of {start} are left): begin anew elsewhere"
            )
        self._stream = file.open("ab")
        try:
            with naming(file):
                self._stream.truncate(start)
        except OSError:
            self._stream.close()
            raise

    def add(self, record: dict[str, Any]) -> None:
        """Writes one line. NaN and infinity must be None by now."""
        if self._stream is not None:
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
            with naming(self._stream.name):
                self._stream.write(line)
                self._stream.flush()
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, record["step"])

    def sync(self) -> int:
        """Waits until the disk has it all; returns the size in bytes."""
        if self._stream is None:
            return 0
        with naming(self._stream.name):
            os.fsync(self._stream.fileno())
        return self._stream.tell()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()
        if self._stream is not None:
            with naming(self._stream.name):  # what could not be written is tried once more
                self._stream.close()
