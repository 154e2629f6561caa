"""Puts bytes on disk so that a reader sees all of them or none. Knows no run, no stage, no rank.

Everything that a run keeps is written here, one primitive operation at a time, and every primitive
first calls `before`: a test puts a function there that fails or kills at the n-th operation.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from threading import Event
from typing import Any

from llama.files import naming, require_no_device

ASIDE = "telemetry"  # a folder in a finished directory that is no part of the result
TO_GO_ON = "training.[01].safetensors"  # what an unfinished one is gone on from, no part either
_BLOCK = 1 << 20  # bytes that are hashed between two looks at whether to stop
JSON = Any  # what `json.loads` returns


def _nothing(operation: str, path: Path) -> None:
    """What happens before an operation, outside tests."""


before: Callable[[str, Path], None] = _nothing


def write(path: Path, data: bytes) -> None:
    """Makes `path` hold `data`, at once: a temporary neighbour is written, synced, and renamed.

    Of a link, what it points at. Raises OSError naming `path` (disk full, no permission, …); then
    `path` is as it was. Raises ValueError for a device or a pipe.
    """
    require_no_device(path)
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.tmp")
    make_directory(path.parent)
    with naming(path):
        try:
            before("write", path)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                before("fsync", path)
                os.fsync(file.fileno())
            before("replace", path)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # on a full disk even half a file is in the way
            raise
        _sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Makes `path` and its parents, durably; an existing directory stays as it is."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with naming(path):
        before("mkdir", path)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def move_in(source: Path, target: Path) -> list[str]:
    """Moves the directory `source` to `target`, after an fsync of every file in it.

    Returns the files' names, but for those in ASIDE and TO_GO_ON, which are moved too. Where
    `target` stands already, each file replaces its namesake there and the others stay. That is not
    one step, so only a record written afterwards may call the result finished, and nothing may go
    on from the half.
    """
    for path in [source, *sorted(source.rglob("*"))]:
        _sync_directory(path) if path.is_dir() else _sync_file(path)
    if target.exists():
        forget(source)
    names = names_in(source)
    with naming(target):
        if not target.exists():
            before("replace", target)
            os.replace(source, target)
        else:
            for name in names:
                make_directory((target / name).parent)
                before("replace", target / name)
                os.replace(source / name, target / name)
                _sync_directory((target / name).parent)
            shutil.rmtree(source)
        _sync_directory(target.parent)
    return [n for n in names if not n.startswith(f"{ASIDE}/") and not fnmatch(n, TO_GO_ON)]


def begin(unfinished: Path, target: Path) -> None:
    """Makes the directory `unfinished`. Where `move_in` was the last that happened to it, and no
    record came after, `target` still holds what it may be gone on from: it is moved back.
    """
    if any(target.glob(TO_GO_ON)) and not unfinished.exists():
        with naming(unfinished):
            before("replace", unfinished)
            os.replace(target, unfinished)
            _sync_directory(unfinished.parent)
    make_directory(unfinished)


def forget(directory: Path) -> None:
    """Removes what a directory would be gone on from."""
    for file in sorted(directory.glob(TO_GO_ON)):
        remove(file)


def share(source: Path, target: Path) -> None:
    """Makes `target` hold what the file `source` holds: the same bytes on the disk, or a copy where
    that cannot be. What is ours is only ever replaced, never written into, so neither changes the
    other.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    make_directory(target.parent)
    with naming(target):
        before("link", target)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
            _sync_file(temporary)
        before("replace", target)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # a rename to a link of the same file does nothing
        _sync_directory(target.parent)


def share_files(source: Path, target: Path) -> None:
    """`share` for each file of a directory, but for those further inside."""
    for file in sorted(source.iterdir()):
        if file.is_file():
            share(file, target / file.name)


def remove(path: Path) -> None:
    """Removes a file or a whole directory; one that is not there is as good as removed."""
    with naming(path):
        before("remove", path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def names_in(directory: Path) -> list[str]:
    """Every file below `directory`, by its path in it, in one order on every machine."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def digest(path: Path, stop: Event | None = None) -> dict[str, JSON]:
    """`{"size": bytes, "sha256": hex}` of a file. Where `stop` is set it leaves off at once: then
    nobody wants the answer.
    """
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while not (stop and stop.is_set()) and (block := file.read(_BLOCK)):
            sha256.update(block)
        return {"size": os.fstat(file.fileno()).st_size, "sha256": sha256.hexdigest()}


def digests(directory: Path, names: Sequence[str]) -> dict[str, dict[str, JSON] | None]:
    """The digest of each of the files `names` in a directory; None: it is not there.

    Several threads: hashing releases the interpreter, and a large checkpoint is many files.
    """
    paths = [directory / name for name in names]
    stop = Event()
    with ThreadPoolExecutor() as pool:
        try:
            found = pool.map(lambda path: digest(path, stop) if path.is_file() else None, paths)
            return dict(zip(names, found))
        finally:
            stop.set()  # Ctrl-C: the pool's end waits for its threads


def json_bytes(value: JSON) -> bytes:
    """A JSON file that a person can read. Raises ValueError on what JSON cannot say: NaN, ∞, a name
    of a file that is not UTF-8; and on what is nested too deeply.
    """
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from None
    except UnicodeEncodeError as error:
        line = error.object.count("\n", 0, error.start)
        text = error.object.split("\n")[line].strip().encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"{text} is not UTF-8: rename the file, or give a link to it") from None


def read_json(data: bytes) -> JSON:
    """The value of a JSON file of our own. Raises ValueError where it is none any more."""
    try:
        return json.loads(data.decode())
    except RecursionError as error:  # 9,999 brackets
        raise ValueError(f"nested too deeply: {error}") from None


def jsonl_bytes(rows: Iterable[Mapping[str, JSON]]) -> bytes:
    """One row a line, fields in the order given. Raises ValueError on what JSON cannot say."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode()


def read_jsonl(data: bytes) -> list[dict[str, JSON]]:
    """The rows of our own, hash-checked JSONL. Splits at \\n alone: text may hold U+2028."""
    return [json.loads(line) for line in data.decode().split("\n") if line]


def _sync_file(path: Path) -> None:
    with naming(path), open(path, "rb") as file:
        before("fsync", path)
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: a rename alone may be forgotten in a power cut."""
    before("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
