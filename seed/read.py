"""Reads the files that a run starts from. Knows no tensor and no model.

| file | fields |
|---|---|
| ift.jsonl | id, prompt, response (and system, if there is one) |
| eft.jsonl | id, prompt, response, judgement, score (0 to 5) |
| ranked.jsonl | id, prompt, responses: [{text, rank}, …], two or more; rank 0 is the best |
| held_out.jsonl | id, prompt |

Fields beyond these are kept as they are. Every mistake is a ValueError with file and line.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed.rows import Kind, Row, read_rows, refuse


@dataclass(frozen=True)
class Seed:
    """The four files of a seed directory."""

    ift: list[Row]
    eft: list[Row]
    ranked: list[Row]
    held_out: list[Row]


def read_seed(directory: Path) -> Seed:
    """All of a seed directory.

    Raises ValueError for a missing or broken file, and for a prompt of held_out or ranked (what is
    measured) that ift or eft (what is learnt) holds too.
    """
    seed = Seed(
        ift=read_ift(directory / "ift.jsonl"),
        eft=read_eft(directory / "eft.jsonl"),
        ranked=read_ranked(directory / "ranked.jsonl"),
        held_out=read_held_out(directory / "held_out.jsonl"),
    )
    learnt = {
        row["prompt"]: f"{name}.jsonl:{line}"
        for name, rows in (("eft", seed.eft), ("ift", seed.ift))
        for line, row in enumerate(rows, start=1)
    }
    for name, rows in (("held_out", seed.held_out), ("ranked", seed.ranked)):
        for line, row in enumerate(rows, start=1):
            if place := learnt.get(row["prompt"]):
                complaint = f"expected a prompt that is not learnt from, found that of {place}"
                refuse(directory / f"{name}.jsonl", line, complaint, "remove one of the two rows")
    return seed


def read_ift(path: Path) -> list[Row]:
    """Instructions with a good answer."""
    return read_rows(path, {"id": _TEXT, "prompt": _TEXT, "response": _TEXT}, {"system": _TEXT})


def read_eft(path: Path) -> list[Row]:
    """Answers with a judgement that agrees with people's ranking."""
    fields = {"id": _TEXT, "prompt": _TEXT, "response": _STRING}
    return read_rows(path, fields | {"judgement": _TEXT, "score": _SCORE})


def read_ranked(path: Path) -> list[Row]:
    """Instructions with answers that people ranked."""
    return read_rows(path, {"id": _TEXT, "prompt": _TEXT, "responses": _RESPONSES})


def read_held_out(path: Path) -> list[Row]:
    """Instructions that the models are measured on."""
    return read_rows(path, {"id": _TEXT, "prompt": _TEXT})


def _is_string(value: Any) -> bool:
    """Half a surrogate pair is a string to Python, but no file can hold it."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_text(value: Any) -> bool:
    return _is_string(value) and bool(value.strip())


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 5


def _are_responses(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_response, value))


def _is_response(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    rank = value.get("rank")
    return _is_string(value.get("text")) and type(rank) is int and rank >= 0


_STRING = Kind("a string", _is_string)
_TEXT = Kind("a string that is not blank", _is_text)
_SCORE = Kind("a number from 0 to 5", _is_score)
_RESPONSES = Kind("a list of two or more {text: string, rank: 0, 1, …}", _are_responses)
