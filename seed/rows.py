"""Reads JSON Lines strictly, plain or gzipped. Each mistake is a ValueError with file, line, what
was expected, and a remedy. Knows no particular file.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

LONGEST = (
    2**26
)  # bytes in a line: a file without line ends, or a gzip bomb, must not eat the memory
NOTHING: Mapping[str, Any] = {}

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a field must be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


def is_string(value: Any) -> bool:
    """Half a surrogate pair is a string to Python, but no file or tokenizer can take it."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


STRING = Kind("a string", is_string)
TEXT = Kind("a string that is not blank", lambda value: is_string(value) and bool(value.strip()))


def read_rows(
    path: Path, fields: Mapping[str, Kind], optional: Mapping[str, Kind] = NOTHING
) -> list[Row]:
    """The rows of `path`, each with all of `fields` and an id of its own; other fields are kept.

    Raises ValueError as `objects` does, for a field that is missing or of another kind, and for an
    id seen before.
    """
    rows: list[Row] = []
    ids = Ids(path)
    for line, row in objects(path):
        check(path, line, row, fields, optional)
        ids.add(line, row["id"])
        rows.append(row)
    return rows


class Ids:
    """The ids of a file, each of which may come once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._line_of: dict[str, int] = {}

    def add(self, line: int, name: str) -> None:
        """Raises ValueError, naming both lines, if the id was there before."""
        if first := self._line_of.get(name):
            expected = f"expected an id of its own, found {short(name)} as in line {first}"
            refuse(self.path, line, expected, "give one of the two rows another id")
        self._line_of[name] = line


def refuse(path: Path, line: int, complaint: str, remedy: str) -> NoReturn:
    """Raises the ValueError that a mistake in a file is reported by."""
    raise ValueError(f"{path}:{line}: {complaint}; {remedy}") from None


def check(
    path: Path,
    line: int,
    row: Row,
    fields: Mapping[str, Kind],
    optional: Mapping[str, Kind] = NOTHING,
) -> None:
    """Raises ValueError for a field that is missing or of another kind."""
    for name, kind in {**fields, **optional}.items():
        if name not in row:
            if name in fields:
                refuse(path, line, f"expected a field {name!r}, {kind.words}", "add it")
        elif not kind.fits(row[name]):
            expected = f"expected {name!r} to be {kind.words}, found {short(row[name])}"
            refuse(path, line, expected, "mend the row")


def objects(path: Path) -> Iterator[tuple[int, Row]]:
    """Line number and object of each line. Lines end at \\n alone: text may hold U+2028.

    Raises ValueError for a file that cannot be read, an empty file, a blank line, a line of more
    than LONGEST bytes, and one that is not UTF-8 or not a JSON object.
    """
    line = 1
    try:
        with _opened(path) as file:
            for line in count(1):
                raw = file.readline(LONGEST + 1)
                if not raw:
                    break
                if len(raw) > LONGEST:
                    expected = f"expected at most {LONGEST:,} bytes in a line, found more"
                    refuse(path, line, expected, "put one object on each line")
                yield line, _object(path, line, raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        refuse(path, line, f"expected a whole gzip file ({error})", "fetch the file again")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if line == 1:
        refuse(path, 1, "expected at least one row, found an empty file", "add rows")


def _opened(path: Path) -> BufferedIOBase:
    """The file, or what is packed in it: by its first bytes, whatever it is called."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")


def _object(path: Path, line: int, raw: bytes) -> Row:
    if not raw.strip():
        refuse(path, line, "expected a JSON object, found a blank line", "remove the line")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        found = f"found the byte {raw[error.start]:#04x} at position {error.start}"
        refuse(path, line, f"expected UTF-8, {found}", "save the file as UTF-8")
    except json.JSONDecodeError as error:
        found = f"found {short(raw[:60])} ({error.msg}, column {error.colno})"
        refuse(path, line, f"expected a JSON object, {found}", "put one, whole, on each line")
    except (ValueError, RecursionError) as error:  # NaN, a number of 5,000 digits, 9,999 brackets
        refuse(path, line, f"expected plain JSON ({error})", "mend the line")
    if not isinstance(value, dict):
        refuse(path, line, f"expected a JSON object, found {short(value)}", "put one on each line")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def short(value: object) -> str:
    """A value in a few words, for a complaint."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
