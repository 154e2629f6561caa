"""The instructions of the small world: a task, its wordings, and back. Knows no answer and no
score.

A task asks for COUNT words of one CATEGORY, in an ORDER, under a RULE about one named word, in a
FORM: Name four fruits in reverse order including fig joined by dashes and end with thanks.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from .words import CATEGORIES, CLOSINGS, NUMBER_WORDS, NUMBERS, SEPARATORS

VERBS = ("Name", "List", "Write", "Give")
ORDERS = {
    "alphabetical": ("in alphabetical order", "from a to z"),
    "reverse": ("in reverse order", "from z to a"),
}
RULES = {
    "include": ("including {}", "with {} among them"),
    "begin": ("starting with {}", "with {} first"),
}
FORMS = ("joined by {}", "with {} between them")
ENDS = ("and end with {}", "closing with {}")


@dataclass(frozen=True)
class Task:
    """One instruction's meaning, whatever its wording."""

    category: str
    count: int
    order: str  # alphabetical | reverse
    rule: str  # include | begin
    word: str  # the word that the rule names
    separator: str  # a key of SEPARATORS
    closing: str

    @property
    def key(self) -> str:
        """The task as one string: equal for every wording of the same task."""
        return " ".join(
            str(part)
            for part in (
                self.category,
                self.count,
                self.order,
                self.rule,
                self.word,
                self.separator,
                self.closing,
            )
        )

    @property
    def split(self) -> str:
        """`test`, `dev` or `train`, fixed by the key: a tenth each is held out from every
        document.
        """
        digest = blake2b(self.key.encode(), digest_size=8).digest()
        return {0: "test", 1: "dev"}.get(int.from_bytes(digest, "big") % 10, "train")

    @property
    def sorted_words(self) -> list[str]:
        """The category's words in the order that the task asks for."""
        return sorted(CATEGORIES[self.category], reverse=self.order == "reverse")

    @property
    def feasible(self) -> bool:
        """Whether some answer meets all five points."""
        words = self.sorted_words
        if self.word not in words:
            return False
        return self.rule == "include" or len(words) - words.index(self.word) >= self.count


def draw_task(rng: Random, split: str = "train") -> Task:
    """A feasible task of one split, drawn by rejection."""
    while True:
        category = rng.choice(list(CATEGORIES))
        task = Task(
            category,
            rng.choice(list(NUMBERS.values())),
            rng.choice(list(ORDERS)),
            rng.choice(list(RULES)),
            rng.choice(CATEGORIES[category]),
            rng.choice(list(SEPARATORS)),
            rng.choice(CLOSINGS),
        )
        if task.feasible and task.split == split:
            return task


def word_task(task: Task, rng: Random) -> str:
    """One of the task's wordings."""
    clauses = [rng.choice(ORDERS[task.order]), rng.choice(RULES[task.rule]).format(task.word)]
    if rng.random() < 0.5:
        clauses.reverse()
    form, end = rng.choice(FORMS), rng.choice(ENDS)
    return _sentence(rng.choice(VERBS), task, clauses, form, end)


def all_wordings(prompt: str) -> list[str]:
    """Every way to word the task that a prompt asks for; the prompt alone when it is no task."""
    task = parse_task(prompt)
    if task is None:
        return [prompt]
    return [
        _sentence(verb, task, clauses, form, end)
        for verb in VERBS
        for order in ORDERS[task.order]
        for rule in RULES[task.rule]
        for clauses in ((order, rule.format(task.word)), (rule.format(task.word), order))
        for form in FORMS
        for end in ENDS
    ]


def _sentence(verb: str, task: Task, clauses: Iterable[str], form: str, end: str) -> str:
    start = f"{verb} {NUMBER_WORDS[task.count]} {task.category}"
    return " ".join([start, *clauses, form.format(task.separator), end.format(task.closing)]) + "."


def _one_of(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(texts)})"


_START = rf"{_one_of(VERBS)} (?P<count>{'|'.join(NUMBERS)}) (?P<category>{'|'.join(CATEGORIES)})"
_ORDER = "|".join(f"(?P<{order}>{'|'.join(texts)})" for order, texts in ORDERS.items())
_RULE = "|".join(
    f"(?P<{rule}>{'|'.join(text.format('[a-z]+') for text in texts)})"
    for rule, texts in RULES.items()
)
_FORM = _one_of(form.format("[a-z]+") for form in FORMS)
_END = _one_of(end.format("[a-z]+") for end in ENDS)
_PATTERNS = [
    re.compile(rf"{_START} (?:{first}) (?:{second}) (?P<form>{_FORM}) (?P<end>{_END})\.")
    for first, second in ((_ORDER, _RULE), (_RULE, _ORDER))
]


def parse_task(text: str) -> Task | None:
    """The task that a text asks for; None when the text is no task of this world."""
    match = next((m for pattern in _PATTERNS if (m := pattern.fullmatch(text.strip()))), None)
    if match is None:
        return None
    rule = next(rule for rule in RULES if match[rule])
    word = _slot(match[rule], RULES[rule])
    separator, closing = _slot(match["form"], FORMS), _slot(match["end"], ENDS)
    if separator not in SEPARATORS or closing not in CLOSINGS:
        return None
    order = next(order for order in ORDERS if match[order])
    count = NUMBERS[match["count"]]
    return Task(match["category"], count, order, rule, word, separator, closing)


def _slot(text: str, templates: Iterable[str]) -> str:
    """What stands in the slot of the template that the text fits."""
    found = (re.fullmatch(template.format("([a-z]+)"), text) for template in templates)
    return next(match[1] for match in found if match)
