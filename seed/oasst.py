"""Reads message trees of Open Assistant as they are published, and takes the first turns.

| form | a line is |
|---|---|
| `….trees.jsonl` | {message_tree_id, tree_state, prompt: a message, with `replies`: [messages]} |
| `….messages.jsonl` | a message, with parent_id and tree_state; its parent may come later |

A message has message_id, text, role (prompter or assistant), lang, and perhaps parent_id, rank,
review_result, deleted, synthetic: null, or missing, where nobody said so. What else it has is not
looked at. Both forms of one dump give the same items. Knows nothing of what is made of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from seed.items import Answer, Item, blank
from seed.rows import STRING, TEXT, Ids, Kind, Row, check, objects, refuse, short

READY = "ready_for_export"  # the state of a tree whose messages are all reviewed and ranked

_FLAG = Kind("true, false or null", lambda value: value is None or type(value) is bool)
_NAME = Kind("an id or null", lambda value: value is None or TEXT.fits(value))
_RANK = Kind(
    "a number 0, 1, … or null", lambda value: value is None or (type(value) is int and value >= 0)
)
_ROLE = Kind("'prompter' or 'assistant'", lambda value: value in ("prompter", "assistant"))
_MESSAGE = {"message_id": TEXT, "text": STRING, "role": _ROLE, "lang": TEXT}
_PERHAPS = {
    "parent_id": _NAME,
    "rank": _RANK,
    **dict.fromkeys(("review_result", "deleted", "synthetic"), _FLAG),
}
_TREE = {
    "message_tree_id": TEXT,
    "tree_state": TEXT,
    "prompt": Kind("a message", lambda value: isinstance(value, dict)),
}
_REPLIES = Kind(
    "a list of messages",
    lambda value: isinstance(value, list) and all(isinstance(reply, dict) for reply in value),
)


@dataclass(frozen=True)
class Message:
    """What we need of a message."""

    id: str
    parent: str | None
    role: str
    text: str
    rank: int | None
    flaw: str | None
    line: int


def read_trees(path: Path, language: str) -> tuple[list[Item], int]:
    """The first turns of a file of trees, and how many messages came later in them.

    Raises ValueError with file and line.
    """
    return _first_turns(path, _collected(path, _messages_of_trees(path, language)))


def read_messages(path: Path, language: str) -> tuple[list[Item], int]:
    """The same of a file of messages.

    Raises ValueError with file and line, also for a parent that is not in the file, and for
    messages that are each other's parents.
    """
    fields = _MESSAGE | {"tree_state": TEXT}

    def read() -> Iterator[Message]:
        for line, row in objects(path):
            check(path, line, row, fields, _PERHAPS)
            yield _message(row, row.get("parent_id"), row["tree_state"], language, line)

    return _first_turns(path, _collected(path, read()))


def _messages_of_trees(path: Path, language: str) -> Iterator[Message]:
    """A tree's messages, each before its replies; without recursion, for trees may be deep."""
    for line, tree in objects(path):
        check(path, line, tree, _TREE)
        todo: list[tuple[Row, str | None]] = [(tree["prompt"], None)]
        while todo:
            row, parent = todo.pop()
            check(path, line, row, _MESSAGE, _PERHAPS | {"replies": _REPLIES})
            told = row.get("parent_id")
            if told not in (None, parent):
                expected = f"expected the parent_id {short(parent)}, found {short(told)}"
                refuse(path, line, expected, "mend it, or put the reply where it belongs")
            yield _message(row, parent, tree["tree_state"], language, line)
            todo += [(reply, row["message_id"]) for reply in reversed(row.get("replies", []))]


def _message(row: Row, parent: str | None, state: str, language: str, line: int) -> Message:
    return Message(
        row["message_id"],
        parent,
        row["role"],
        row["text"],
        row.get("rank"),
        _flaw(row, state, language),
        line,
    )


def _flaw(row: Row, state: str, language: str) -> str | None:
    """The first reason to leave a message out; a review or a flag that is missing is none."""
    if state != READY:
        return f"its tree is not {READY}"
    if row["lang"] != language:
        return "another language"
    if row.get("deleted"):
        return "deleted"
    if row.get("review_result") is False:
        return "failed its review"
    if row.get("synthetic"):
        return "written by a model"
    return blank(row["text"])


def _collected(path: Path, messages: Iterator[Message]) -> dict[str, Message]:
    ids, collected = Ids(path), {}
    for message in messages:
        ids.add(message.line, message.id)
        collected[message.id] = message
    return collected


def _first_turns(path: Path, messages: Mapping[str, Message]) -> tuple[list[Item], int]:
    """Each root with its direct replies, in the file's order; and the number of the others."""
    _require_trees(path, messages)
    replies: dict[str | None, list[Message]] = {}
    for message in messages.values():
        replies.setdefault(message.parent, []).append(message)
    items = [
        Item(root.id, root.text, tuple(map(_answer, replies.get(root.id, []))), root.flaw)
        for root in replies.get(None, [])
    ]
    return items, len(messages) - sum(1 + len(item.answers) for item in items)


def _answer(message: Message) -> Answer:
    return Answer(message.text, message.rank, message.flaw)


def _require_trees(path: Path, messages: Mapping[str, Message]) -> None:
    """Every message hangs, reply by reply, from a root."""
    rooted: set[str] = set()
    for message in messages.values():
        trail: set[str] = set()
        here: Message | None = message
        while here is not None and here.id not in rooted:
            if here.id in trail:
                complaint = f"{short(here.id)} is a reply to itself, in the end"
                refuse(path, here.line, complaint, "mend the parent_id")
            trail.add(here.id)
            here = _parent(path, messages, here)
        rooted |= trail


def _parent(path: Path, messages: Mapping[str, Message], message: Message) -> Message | None:
    """What a message replies to; None for a root."""
    if message.parent is None:
        if message.role != "prompter":
            complaint = "expected a message without a parent to be a prompter's"
            refuse(path, message.line, complaint, "add the parent_id")
        return None
    parent = messages.get(message.parent)
    if parent is None:
        complaint = f"expected the parent {short(message.parent)} in this file, found none"
        refuse(path, message.line, complaint, "add it, or remove the row and the replies to it")
    if parent.role == message.role:
        complaint = f"expected a reply to the other side, found {message.role} to {parent.role}"
        refuse(path, message.line, complaint, "mend the role or the parent_id")
    return parent
