"""Reads a file of any kind that seed data can be made from; its first line tells which it is.

| kind | a line is |
|---|---|
| Open Assistant | as `seed/oasst.py` says |
| Alpaca | {instruction, output} and perhaps input; the output is the best answer |
| preferences | {prompt, chosen, rejected}, texts or lists of {role, content}: a ranked set of two |
| plain | {prompt}, with response (the best answer), or responses: [{text, rank}], or neither |

Lines may have an `id`. Only Open Assistant's say their language; of the others all are taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed.items import Answer, Item, blank
from seed.oasst import read_messages, read_trees
from seed.read import RESPONSES
from seed.rows import STRING, TEXT, Ids, Kind, Row, check, is_string, objects, refuse, short

MANY_TURNS = "not one question and one answer"
SAME_ANSWER = "chosen and rejected are the same"
DIFFERENT_PROMPTS = "chosen and rejected answer different prompts"

Turns = tuple[tuple[str, str], ...]  # (role, text) of each message
Fields = Mapping[str, Kind]
MakeItem = Callable[[str, Row], Item]


@dataclass(frozen=True)
class Source:
    """What a file held."""

    file: str
    kind: str
    items: list[Item]
    later_turns: int = 0  # messages that neither begin a conversation nor answer its first


def read_source(path: Path, language: str, name: str | None = None) -> Source:
    """A file of seed material. Raises ValueError, with file and line, for one that is not.

    name: what a row without an id is called after, with its line; None: `stem`.
    """
    name = stem(path) if name is None else name
    _, first = next(objects(path))
    if isinstance(first.get("prompt"), dict):
        return Source(path.name, "Open Assistant trees", *read_trees(path, language))
    if "message_id" in first:
        return Source(path.name, "Open Assistant messages", *read_messages(path, language))
    for field, (kind, fields, optional, item) in _KINDS.items():
        if field in first:
            return Source(path.name, kind, _read(path, name, fields, optional, item))
    known = "message_tree_id and prompt, message_id, instruction, chosen, or prompt"
    found = short(", ".join(first))
    refuse(path, 1, f"expected one of the fields {known}, found {found}", "see seed/sources.py")


def stem(path: Path) -> str:
    """A file's name up to its first dot."""
    return path.name.split(".")[0]


def _read(path: Path, source: str, fields: Fields, optional: Fields, item: MakeItem) -> list[Item]:
    ids, items = Ids(path), []
    for line, row in objects(path):
        check(path, line, row, fields, {"id": TEXT, **optional})
        name = row.get("id", f"{source}-{line}")
        ids.add(line, name)
        items.append(item(name, row))
    return items


def _from_alpaca(name: str, row: Row) -> Item:
    prompt = "\n\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
    answer = Answer(row["output"], 0, blank(row["output"]))
    return Item(name, prompt, (answer,), blank(prompt))


def _from_plain(name: str, row: Row) -> Item:
    responses = row.get("responses", [])
    if "response" in row:
        responses = [{"text": row["response"], "rank": 0}, *responses]
    answers = (Answer(each["text"], each["rank"], blank(each["text"])) for each in responses)
    flaw = MANY_TURNS if row.get("system") else blank(row["prompt"])
    return Item(name, row["prompt"], tuple(answers), flaw)


def _from_preference(name: str, row: Row) -> Item:
    """A prompt may stand by itself, in front of both answers, or both."""
    before = _turns(row.get("prompt", ()), "user")
    both = [_turns(row[key], "assistant") for key in ("chosen", "rejected")]
    whole = [turns if len(turns) > 1 else (*before, *turns) for turns in both]
    if any([role for role, _ in turns] != ["user", "assistant"] for turns in whole):
        return Item(name, "", flaw=MANY_TURNS)
    (prompt, chosen), (other, rejected) = ([text for _, text in turns] for turns in whole)
    if prompt != other:
        return Item(name, prompt, flaw=DIFFERENT_PROMPTS)
    answers = tuple(Answer(text, i, blank(text)) for i, text in enumerate((chosen, rejected)))
    return Item(name, prompt, answers, SAME_ANSWER if chosen == rejected else blank(prompt))


def _turns(value: Any, role: str) -> Turns:
    """A text is one message of that role."""
    if isinstance(value, str):
        return ((role, value),)
    return tuple((message["role"], message["content"]) for message in value)


def _is_dialog(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return is_string(value)
    return all(
        isinstance(message, dict)
        and is_string(message.get("role"))
        and is_string(message.get("content"))
        for message in value
    )


_DIALOG = Kind("a text, or a list of {role, content}", _is_dialog)
_KINDS: dict[str, tuple[str, Fields, Fields, MakeItem]] = {  # by the field that tells them
    "instruction": (
        "Alpaca",
        {"instruction": STRING, "output": STRING},
        {"input": STRING},
        _from_alpaca,
    ),
    "chosen": (
        "preferences",
        {"chosen": _DIALOG, "rejected": _DIALOG},
        {"prompt": _DIALOG},
        _from_preference,
    ),
    "prompt": (
        "plain",
        {"prompt": STRING},
        {"response": STRING, "responses": RESPONSES, "system": STRING},
        _from_plain,
    ),
}
