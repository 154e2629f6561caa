"""Reads the files that a run starts from. Knows no tensor and no model.

| file | fields |
|---|---|
| ift.jsonl | id, prompt, response (and system, if there is one) |
| eft.jsonl | id, prompt, response, judgement, score (on the rubric's scale); may be missing |
| ranked.jsonl | id, prompt, responses: [{text, rank}, …], two or more; rank 0 is the best |
| held_out.jsonl | id, prompt |
| validation.jsonl | as held_out.jsonl, to choose checkpoints by; may be missing |
| eft_ranked.jsonl | as ranked.jsonl, to learn judging from; may be missing if eft.jsonl is there |

A system message is learnt with its row, in SFT and in replay, and nowhere else: what the loop asks,
writes and measures has none. Without eft.jsonl a run makes such rows of eft_ranked.jsonl, as the
paper did. Fields beyond these are kept as they are. Every mistake is a ValueError with file and
line.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seed.items import plain
from seed.rows import STRING, TEXT, Kind, Row, is_string, read_rows, refuse


@dataclass(frozen=True)
class Seed:
    """The files of a seed directory."""

    ift: list[Row]
    eft: list[Row]
    ranked: list[Row]
    held_out: list[Row]
    eft_ranked: list[Row]
    validation: list[Row] = field(default_factory=list)


def read_seed(directory: Path) -> Seed:
    """All of a seed directory.

    Raises ValueError for a missing or broken file, and for a prompt of held_out or ranked (what is
    measured) that ift, eft, eft_ranked (what is learnt) or validation (what is chosen by) holds
    too, be it with other case and spaces.
    """
    judged, practice = directory / "eft.jsonl", directory / "eft_ranked.jsonl"
    validation = directory / "validation.jsonl"
    seed = Seed(
        ift=read_ift(directory / "ift.jsonl"),
        eft=read_eft(judged) if judged.exists() or not practice.exists() else [],
        ranked=read_ranked(directory / "ranked.jsonl"),
        held_out=read_held_out(directory / "held_out.jsonl"),
        eft_ranked=read_ranked(practice) if practice.exists() else [],
        validation=read_held_out(validation) if validation.exists() else [],
    )
    used = {
        plain(row["prompt"]): f"{name}.jsonl:{line}"
        for name in ("validation", "eft_ranked", "eft", "ift")
        for line, row in enumerate(getattr(seed, name), start=1)
    }
    for name, rows in (("held_out", seed.held_out), ("ranked", seed.ranked)):
        for line, row in enumerate(rows, start=1):
            if place := used.get(plain(row["prompt"])):
                complaint = (
                    f"expected a prompt that is not learnt from or chosen by, found that of {place}"
                )
                refuse(directory / f"{name}.jsonl", line, complaint, "remove one of the two rows")
    return seed


def read_ift(path: Path) -> list[Row]:
    """Instructions with a good answer."""
    return read_rows(path, {"id": TEXT, "prompt": TEXT, "response": TEXT}, {"system": TEXT})


def read_eft(path: Path) -> list[Row]:
    """Answers with a judgement that agrees with people's ranking."""
    fields = {"id": TEXT, "prompt": TEXT, "response": STRING}
    return read_rows(path, fields | {"judgement": TEXT, "score": _SCORE})


def read_ranked(path: Path) -> list[Row]:
    """Instructions with answers that people ranked."""
    return read_rows(path, {"id": TEXT, "prompt": TEXT, "responses": RESPONSES})


def read_held_out(path: Path) -> list[Row]:
    """Instructions alone."""
    return read_rows(path, {"id": TEXT, "prompt": TEXT})


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _are_responses(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_response, value))


def _is_response(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    rank = value.get("rank")
    return is_string(value.get("text")) and type(rank) is int and rank >= 0


_SCORE = Kind("a number", _is_score)
RESPONSES = Kind("a list of two or more {text: string, rank: 0, 1, …}", _are_responses)
