"""The record of what is finished: each committed file's size, hash, seconds and counts, in order.

A file that is not in the record, or that is not as recorded, does not count as made. Knows no rank,
and not how anything is made.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from loop import files

NAME = "manifest.json"
Entry = dict[str, Any]


class Manifest:
    """The stages of one run directory, in the order in which they were finished."""

    def __init__(self, root: Path) -> None:
        """Reads the record, if there is one. Raises ValueError if it is damaged."""
        self._root = root
        self.stages: dict[str, Entry] = _read(root / NAME)

    def faults(self, path: str) -> list[str] | None:
        """What is wrong with the finished file or directory `path`; [] if nothing, None if never
        finished.
        """
        entry = self.stages.get(path)
        if entry is None:
            return None
        found = files.digests(self._root / path, list(entry["files"]))
        return [
            f"{self._root / path / name}: {'damaged' if found.get(name) else 'gone'}"
            for name, digest in entry["files"].items()
            if found.get(name) != digest
        ]

    def record(self, path: str, names: list[str], seconds: float, counts: Entry) -> bool:
        """Records the directory `path` with its files `names` as finished; or, with [""], a file.

        Returns True if it came out different from the last time: then whatever was recorded after
        it was made from something that is no more, and is struck out.
        """
        old = self.stages.get(path)
        found = files.digests(self._root / path, names)
        entry = {"files": found, "seconds": round(seconds, 3), "counts": counts}
        changed = old is not None and old["files"] != entry["files"]
        if changed:
            order = list(self.stages)
            for later in order[order.index(path) :]:
                del self.stages[later]
        self.stages[path] = entry
        self._write()
        return changed

    def take(self, stages: dict[str, Entry]) -> None:
        """Begins the record with what another run made."""
        assert not self.stages, "a record has one beginning"
        self.stages = dict(stages)
        self._write()

    def forget(self, paths: Collection[str]) -> None:
        """Strikes out entries whose files are no longer needed."""
        self.stages = {path: entry for path, entry in self.stages.items() if path not in paths}
        self._write()

    def _write(self) -> None:
        record = {"sha256": _hash(self.stages), "stages": self.stages}
        files.write(self._root / NAME, files.json_bytes(record))


def _hash(stages: dict[str, Entry]) -> str:
    return hashlib.sha256(files.json_bytes(stages)).hexdigest()


def _read(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        record = files.read_json(path.read_bytes())
        stages: dict[str, Entry] = record["stages"]
        if record["sha256"] == _hash(stages):
            return stages
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path}: damaged; remove it to have every stage of this run done again")
