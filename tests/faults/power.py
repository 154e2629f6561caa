"""What a power cut may leave: of each file what was synced, of each directory the names that it had
when it was synced; of the rest nothing, all, or by the toss of a coin some.

```
  process   write draft · fsync draft · rename draft → x · fsync directory
  disk            (any part of it)  all of it      (x old or new)     x new
```
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from random import Random

FATES = ("nothing", "names", "bytes", "coin")  # what reaches the disk without having been synced


class Disk:
    """Follows what is synced below `root`: `act` is for `shim.watched`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._new = count()
        self._ids: dict[int, int] = {}  # inode number → our own: the system uses its own again
        self._names: dict[int, dict[str, int]] = {}  # a directory's, when it was last synced
        self._bytes: dict[int, bytes] = {}  # a file's, when it was last synced
        if root.exists():
            for path in [root, *root.rglob("*")]:
                self._sync(path)

    def act(self, operation: str, path: Path) -> None:
        """Takes note of an operation that is about to happen."""
        if operation == "fsync":
            self._sync(path)
        elif operation in ("unlink", "remove", "rmdir", "replace", "rename") and path.exists():
            self._ids.pop(path.stat().st_ino, None)  # whoever has this number next is another

    def cut(self, fate: str, out: Path, seed: int = 0) -> None:
        """Builds in `out` what a cut at this moment may leave of `root`."""
        if not self.root.exists():
            return
        now = {self._id(path): path for path in [self.root, *self.root.rglob("*")]}
        self._build(self._id(self.root), out, now, fate, Random(seed))

    def _build(self, id: int, out: Path, now: dict[int, Path], fate: str, coin: Random) -> None:
        path = now.get(id)
        if id not in self._names and (path is None or not path.is_dir()):
            out.write_bytes(self._content(id, path, fate, coin))
            return
        out.mkdir()
        synced = self._names.get(id, {})
        present = {entry.name: self._id(entry) for entry in path.iterdir()} if path else {}
        for name in sorted(synced.keys() | present.keys()):
            which = (
                present if fate == "names" or (fate == "coin" and coin.random() < 0.5) else synced
            )
            if name in which:
                self._build(which[name], out / name, now, fate, coin)

    def _content(self, id: int, path: Path | None, fate: str, coin: Random) -> bytes:
        synced = self._bytes.get(id, b"")
        if path is None or fate in ("nothing", "names"):
            return synced
        present = path.read_bytes()
        if fate == "bytes" or present == synced:
            return present
        return coin.choice([synced, present, present[: coin.randrange(len(present) + 1)]])

    def _sync(self, path: Path) -> None:
        if path.is_dir():
            self._names[self._id(path)] = {entry.name: self._id(entry) for entry in path.iterdir()}
        else:
            self._bytes[self._id(path)] = path.read_bytes()

    def _id(self, path: Path) -> int:
        return self._ids.setdefault(os.lstat(path).st_ino, next(self._new))
