"""Instructions with their answers, as any source has them, and why some cannot be used.

Nothing is thrown away here: what is left out carries its `flaw`, so that all can be counted in the
end. Knows no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

REPEATED = "repeats an earlier one"


@dataclass(frozen=True)
class Answer:
    """One answer to an instruction. Of two ranks the smaller is the better, and 0 the best."""

    text: str
    rank: int | None  # None: nobody ranked it
    flaw: str | None = None  # why it cannot be used; None: it can


@dataclass(frozen=True)
class Item:
    """An instruction and its answers, in the source's order."""

    id: str
    prompt: str
    answers: tuple[Answer, ...] = ()
    flaw: str | None = None

    @property
    def good(self) -> list[Answer]:
        """The answers that can be used."""
        return [answer for answer in self.answers if answer.flaw is None]

    @property
    def best(self) -> Answer | None:
        """The answer ranked 0. If that one has a flaw, the second is not the best."""
        return next((answer for answer in self.good if answer.rank == 0), None)

    @property
    def ranked(self) -> list[Answer]:
        """The answers that somebody put in an order; none, unless two of them differ in rank."""
        answers = [answer for answer in self.good if answer.rank is not None]
        return answers if len({answer.rank for answer in answers}) > 1 else []


def blank(text: str) -> str | None:
    """The flaw of an empty text."""
    return None if text.strip() else "blank"


def without_repeats(items: Sequence[Item]) -> list[Item]:
    """The same items; of prompts that differ in case and spaces only, all but the first are flawed,
    and so are all but the best-ranked of an item's answers with the same text.
    """
    seen: set[str] = set()
    kept = []
    for item in items:
        if item.flaw is None:
            words = plain(item.prompt)
            item = replace(item, flaw=REPEATED) if words in seen else _answers_once(item)
            seen.add(words)
        kept.append(item)
    return kept


def _answers_once(item: Item) -> Item:
    best: dict[str, Answer] = {}
    for answer in sorted(item.good, key=lambda answer: (answer.rank is None, answer.rank)):
        best.setdefault(answer.text.strip(), answer)
    firsts = set(map(id, best.values()))
    answers = (
        answer if answer.flaw or id(answer) in firsts else replace(answer, flaw=REPEATED)
        for answer in item.answers
    )
    return replace(item, answers=tuple(answers))


def plain(text: str) -> str:
    """A text without what nobody would call a difference: case, and how much space is where."""
    return " ".join(text.split()).casefold()
