"""Files that are either whole or not there. Knows nothing of what they hold.

The order that survives a crash: write a draft beside the target, fsync it, rename it over the
target, fsync the directory (which is where a name lives). Before each of these `before` is called:
a test puts a function there that fails or kills at the n-th operation.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _nothing(operation: str, path: Path) -> None:
    """What happens before an operation, outside tests."""


before: Callable[[str, Path], None] = _nothing


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An error of the system says which file it met: 'No space left on device' alone does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_no_device(path: Path) -> None:
    """Raises ValueError where `path` is a device or a pipe: a file renamed over it would replace
    it, and not go into it.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is a device or a pipe, not a file: choose another place")


def require_place(path: Path, source: Path | None = None) -> None:
    """Raises ValueError where no file `path` could be written, or it would be written over the file
    `source` that it is made of: asked before the work is done that it is to hold. Leaves nothing
    behind.
    """
    if source and source.exists() and path.exists() and path.samefile(source):
        raise ValueError(f"{path} is the file that is read: choose another --out")
    if path.is_dir():
        raise ValueError(f"{path} is a directory: name a file in it")
    require_no_device(path)
    folder = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()  # a read-only disk cannot be told otherwise
    except OSError as error:
        raise ValueError(
            f"{path}: nothing can be written in {folder} ({error.strerror}); choose another place"
        ) from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the draft's name for the caller to write; when all went well, `path` is that file.

    On an error `path` is as it was, and the draft is gone. Raises OSError (no room, no right),
    naming `path`, and ValueError for a device or a pipe. A link is replaced, not what it points at:
    a checkpoint may be a folder of links to files that others have too (Hugging Face's cache).
    """
    path = Path(path)
    require_no_device(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")  # one name: a killed run's draft is overwritten
    try:
        with naming(path):
            before("write", path)
            yield draft
            _sync(draft)
            before("replace", path)
            os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def replace_file(path: str | Path, content: bytes) -> None:
    """Makes `content` the whole content of `path`."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def replace_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinity are refused with a ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, (text + "\n").encode())


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, if there is none."""
    try:
        value = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, found a {type(value).__name__}")
    return value


def _sync(path: Path) -> None:
    before("fsync", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)
