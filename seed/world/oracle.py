"""The truth of the small world: five additive points for an answer. The loop never imports this.

kind   every item is a word of the category
count  as many items as were asked for
rule   the named word is among them (include) or is the first of them (begin)
order  each item comes strictly after the one before it, in the order asked for
form   joined as asked and closed as asked
"""

import re
from dataclasses import dataclass

from .tasks import Task, parse_task
from .words import CATEGORY_OF, SEPARATORS

CRITERIA = ("kind", "count", "rule", "order", "form")


@dataclass(frozen=True)
class Answer:
    """An answer's parts as they can be read off its text."""

    items: list[str]
    separator: str | None  # the key of the one separator used; None when mixed or unknown
    closing: str | None  # the word after the full stop


def read_answer(text: str) -> Answer:
    """Split `apple - fig - plum. thanks` into items, separator and closing."""
    body, stop, closing = text.strip().partition(".")
    separators = re.findall(r"\s*[^a-z\s]\s*|\s+", body)
    used = {name for name, sign in SEPARATORS.items() if set(separators) == {sign}}
    items = [item for item in re.split(r"[^a-z]+", body) if item]
    return Answer(items, used.pop() if used else None, closing.strip() or None if stop else None)


def in_order(previous: str, item: str, order: str) -> bool:
    """Whether `item` may stand after `previous`; a repeated word may not."""
    return previous < item if order == "alphabetical" else previous > item


def points(task: Task, text: str) -> dict[str, bool]:
    """Which of the five criteria the answer meets."""
    answer = read_answer(text)
    items = answer.items
    return {
        "kind": bool(items) and all(CATEGORY_OF.get(item) == task.category for item in items),
        "count": len(items) == task.count,
        "rule": task.word in (items if task.rule == "include" else items[:1]),
        "order": bool(items)
        and all(map(lambda a, b: in_order(a, b, task.order), items, items[1:])),
        "form": answer.separator == task.separator and answer.closing == task.closing,
    }


def truth(prompt: str, response: str) -> dict[str, bool] | None:
    """The five verdicts on a response; None when the prompt is no task of this world."""
    task = parse_task(prompt)
    return None if task is None else points(task, response)
