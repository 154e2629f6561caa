"""Reads JSON Lines strictly: each mistake is a ValueError with file, line, what was expected, and a
remedy. Knows no particular file.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

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
    path: Path, fields: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None
) -> list[Row]:
    """The rows of `path`, each with all of `fields` and an id of its own; other fields are kept.

    Raises ValueError for a file that cannot be read, an empty file, a blank line, a line that is
    not UTF-8 or not a JSON object, and a field that is missing, of another kind, or an id seen
    before.
    """
    rows: list[Row] = []
    line_of_id: dict[Any, int] = {}
    for line, row in _objects(path):
        _check(path, line, row, fields, optional or {})
        first = line_of_id.setdefault(row["id"], line)
        if first != line:
            expected = f"expected an id of its own, found {_short(row['id'])} as in line {first}"
            refuse(path, line, expected, "give one of the two rows another id")
        rows.append(row)
    if not rows:
        refuse(path, 1, "expected at least one row, found an empty file", "add rows")
    return rows


def refuse(path: Path, line: int, complaint: str, remedy: str) -> NoReturn:
    """Raises the ValueError that a mistake in a file is reported by."""
    raise ValueError(f"{path}:{line}: {complaint}; {remedy}") from None


def _check(
    path: Path, line: int, row: Row, fields: Mapping[str, Kind], optional: Mapping[str, Kind]
) -> None:
    for name, kind in {**fields, **optional}.items():
        if name not in row:
            if name in fields:
                refuse(path, line, f"expected a field {name!r}, {kind.words}", "add it")
        elif not kind.fits(row[name]):
            expected = f"expected {name!r} to be {kind.words}, found {_short(row[name])}"
            refuse(path, line, expected, "mend the row")


def _objects(path: Path) -> Iterator[tuple[int, Row]]:
    """Line number and object of each line. Lines end at \\n alone: text may hold U+2028."""
    try:
        with open(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                yield line, _object(path, line, raw)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _object(path: Path, line: int, raw: bytes) -> Row:
    if not raw.strip():
        refuse(path, line, "expected a JSON object, found a blank line", "remove the line")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        found = f"found the byte {raw[error.start]:#04x} at position {error.start}"
        refuse(path, line, f"expected UTF-8, {found}", "save the file as UTF-8")
    except json.JSONDecodeError as error:
        found = f"found {_short(raw[:60])} ({error.msg}, column {error.colno})"
        refuse(path, line, f"expected a JSON object, {found}", "mend the line")
    except (ValueError, RecursionError) as error:  # NaN, a number of 5,000 digits, 9,999 brackets
        refuse(path, line, f"expected plain JSON ({error})", "mend the line")
    if not isinstance(value, dict):
        refuse(path, line, f"expected a JSON object, found {_short(value)}", "mend the line")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
