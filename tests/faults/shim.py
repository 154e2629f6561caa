"""Stands between a run and its disk: every operation that changes something under a directory is
told to a function first, which may count, fail, or end the process.

It sits at the level of `os` and `open`, below the project's own writing, so it sees what any of its
modules do, in whatever way. What libraries write by themselves in C (safetensors' `save_file`) it
sees only when it is synced and renamed.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

CHANGES = ("mkdir", "rmdir", "unlink", "remove", "replace", "rename", "link", "truncate")
Act = Callable[[str, Path], None]


class Torn(BaseException):
    """Raised by an act before a write: half of the bytes go to the file, then `then()`."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then


class _Told(io.FileIO):
    """A file whose writes are told."""

    def __init__(self, act: Act, path: Path, mode: str) -> None:
        act("open", path)
        super().__init__(path, mode)
        self._act, self._path = act, path

    def write(self, data: Any) -> int:
        try:
            self._act("write", self._path)
        except Torn as torn:
            super().write(memoryview(data).cast("B")[: len(data) // 2])
            torn.then()
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self._act("truncate", self._path)
        return super().truncate(size)


@contextmanager
def watched(root: Path, act: Act) -> Iterator[None]:
    """Inside, `act(operation, path)` is called before each operation that changes `root`."""
    root = Path(os.path.abspath(root))
    usual: dict[tuple[Any, str], Any] = {}

    def put(place: Any, name: str, make: Callable[[Any], Any]) -> None:
        usual[place, name] = getattr(place, name)
        setattr(place, name, make(usual[place, name]))

    def inside(path: Path) -> bool:
        return path == root or root in path.parents

    def told(name: str) -> Callable[[Any], Any]:
        def make(function: Any) -> Any:
            def wrapper(path: Any, *rest: Any, **how: Any) -> Any:
                at = _place(path, how.get("dir_fd", how.get("src_dir_fd")))
                goal = _place(rest[0], None) if name in ("replace", "rename", "link") else at
                if at is not None and (inside(at) or (goal and inside(goal))):
                    act(name, goal or at)
                return function(path, *rest, **how)

            return wrapper

        return make

    def told_sync(function: Any) -> Any:
        def wrapper(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            at = Path(os.readlink(f"/proc/self/fd/{number}"))
            if inside(at):
                act("fsync", at)
            function(file)

        return wrapper

    def told_open(function: Any) -> Any:
        def wrapper(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **how: Any) -> Any:
            at = None if isinstance(file, int) else _place(file, None)
            if at is None or not inside(at) or not set(mode) & set("wax+"):
                return function(file, mode, buffering, *rest, **how)
            assert "+" not in mode, (mode, "nothing of ours reads what it is writing")
            raw = _Told(act, at, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **how)

        return wrapper

    try:
        for name in CHANGES:
            put(os, name, told(name))
        put(os, "fsync", told_sync)
        put(builtins, "open", told_open)
        put(io, "open", told_open)
        yield
    finally:
        for (place, name), function in usual.items():
            setattr(place, name, function)


def _place(path: Any, directory: int | None) -> Path | None:
    if isinstance(path, int):
        return None
    above = "" if directory is None else os.readlink(f"/proc/self/fd/{directory}")
    return Path(os.path.abspath(os.path.join(above, os.fsdecode(path))))


def at_operation(n: int, happens: Callable[[str, Path], None]) -> Act:
    """An act that does nothing but at the n-th operation, counted from 0."""
    seen = count()

    def act(operation: str, path: Path) -> None:
        if next(seen) == n:
            happens(operation, path)

    return act


def from_operation(n: int, happens: Callable[[str, Path], None]) -> Act:
    """An act that does nothing before the n-th operation, and the same at all from there on."""
    seen = count()

    def act(operation: str, path: Path) -> None:
        if next(seen) >= n:
            happens(operation, path)

    return act


def die(operation: str, path: Path) -> None:
    """As kill -9 would: no handler, no clean-up; of what was being written half is there."""
    if operation == "write":
        raise Torn(lambda: os._exit(137))
    os._exit(137)


def fail(number: int) -> Callable[[str, Path], None]:
    """An error of the system, such as `errno.ENOSPC`; of what was being written half is there."""

    def failing(operation: str, path: Path) -> None:
        named = [] if operation in ("write", "fsync", "truncate") else [str(path)]
        error = OSError(number, os.strerror(number), *named)  # as the system's own are
        if number == errno.ENOSPC and operation in ("unlink", "remove", "rmdir", "fsync"):
            return  # a full disk lets go of what it has
        if operation == "write":
            raise Torn(lambda: _raise(error))
        raise error

    return failing


def _raise(error: OSError) -> None:
    raise error
