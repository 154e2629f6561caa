"""Careful and careless people: they write answers and check them, as those who wrote the web did.

Nobody here is an oracle. A careless writer forgets constraints (people like commas, forget the
closing word, and write from a to z even when asked for the reverse); a lenient checker overlooks
faults. The base model learns from what they wrote, so it can do better than most of them and does
so only sometimes: that is the room the loop has.
"""

from collections.abc import Callable
from random import Random

from .oracle import in_order, read_answer
from .tasks import Task
from .words import CATEGORIES, CATEGORY_OF, CLOSINGS, NUMBER_WORDS, SEPARATORS

CAREFUL_WRITERS = 0.15
CAREFUL_SLIP = 0.02  # how often a careful writer fails each criterion
STRICT_CHECKERS = 0.5
OVERLOOKS = (0.05, 0.5)  # how often a checker misses a fault: (strict, lenient)
INVENTS = 0.02  # how often a checker sees a fault where there is none


def slip_rates(task: Task) -> dict[str, float]:
    """How often the careless fail this task, each criterion by itself.

    It depends on what is asked for, as habits do: commas come by themselves and stars do not. So
    some wishes are mostly met, others mostly not, and what most people do is not what is right.
    """
    return {
        "kind": 0.15,
        "count": {3: 0.10, 4: 0.20, 5: 0.35, 6: 0.50}[task.count],
        "rule": {"begin": 0.30, "include": 0.45}[task.rule],
        "order": {"alphabetical": 0.25, "reverse": 0.60}[task.order],
        "separator": {"commas": 0.05, "dashes": 0.45, "slashes": 0.55, "stars": 0.65}[
            task.separator
        ],
        "closing": {"thanks": 0.35, "cheers": 0.45, "done": 0.55, "bye": 0.65}[task.closing],
    }


def write_answer(task: Task, rng: Random) -> str:
    """One person's answer: careful or careless, never told which."""
    careful = rng.random() < CAREFUL_WRITERS
    rates = slip_rates(task)
    slips = {name for name in rates if rng.random() < (CAREFUL_SLIP if careful else rates[name])}
    return write_with(task, slips, rng)


def write_with(task: Task, slips: set[str], rng: Random) -> str:
    """An answer with just these slips (a slip can happen to do no harm)."""
    count = task.count
    if "count" in slips:
        count += rng.choice((-1, 1)) if count > 2 else 1
    items = _choose_words(task, count, "rule" in slips, rng)
    if "kind" in slips:
        items[rng.randrange(len(items))] = rng.choice(
            [word for word in CATEGORY_OF if CATEGORY_OF[word] != task.category]
        )
        items = _sorted(task, items)
    if "order" in slips:
        items = _disorder(task, items, rng)
    separator, closing = task.separator, f". {task.closing}"
    if "separator" in slips:
        others = [name for name in SEPARATORS if name != separator]
        separator = "commas" if separator != "commas" and rng.random() < 0.6 else rng.choice(others)
    if "closing" in slips:
        other = rng.choice([word for word in CLOSINGS if word != task.closing])
        closing = f". {other}" if rng.random() < 0.3 else "."
    return SEPARATORS[separator].join(items) + closing


def _choose_words(task: Task, count: int, break_rule: bool, rng: Random) -> list[str]:
    """Words in the order asked for; with the rule kept or broken."""
    words = task.sorted_words
    start = words.index(task.word)
    if break_rule:
        words.remove(task.word)
        return _sorted(task, rng.sample(words, count))
    rest = words[start + 1 :] if task.rule == "begin" else [w for w in words if w != task.word]
    return _sorted(task, [task.word, *rng.sample(rest, min(count - 1, len(rest)))])


def _sorted(task: Task, items: list[str]) -> list[str]:
    return sorted(items, reverse=task.order == "reverse")


def _disorder(task: Task, items: list[str], rng: Random) -> list[str]:
    """Out of order: the habit of a to z, a shuffle, or a word said twice."""
    first = items[:1] if task.rule == "begin" and items[0] == task.word else []
    rest = items[len(first) :]
    kind = rng.random()
    if kind < 0.6 and task.order == "reverse":
        return first + sorted(rest)
    if kind < 0.8:
        rng.shuffle(rest)
        return first + rest
    at = rng.randrange(len(items) - 1)
    return [*items[: at + 1], items[at], *items[at + 2 :]]


def check_answer(task: Task, text: str, rng: Random, strict: bool | None = None) -> str:
    """One person's check of an answer: a verdict for each item and criterion, then the points added
    up.

    one apple fine two fig fine three cherry early. kind good. count three of four bad. fig found
    good. order bad. dashes for dashes none for thanks form bad. Score: 2
    """
    if strict is None:
        strict = rng.random() < STRICT_CHECKERS

    def fault(is_fault: bool) -> bool:
        return rng.random() >= OVERLOOKS[not strict] if is_fault else rng.random() < INVENTS

    answer = read_answer(text)
    notes, verdicts = [], {"kind": True, "order": True}
    for i, item in enumerate(answer.items):
        alien = fault(CATEGORY_OF.get(item) != task.category)
        early = i > 0 and fault(not in_order(answer.items[i - 1], item, task.order))
        verdicts["kind"] &= not alien
        verdicts["order"] &= not early
        notes.append(
            f"{number_word(i + 1)} {item} "
            + (" ".join(["alien"] * alien + ["early"] * early) or "fine")
        )
    count = len(answer.items)
    verdicts["count"] = not fault(count != task.count)
    seen = answer.items if task.rule == "include" else answer.items[:1]
    verdicts["rule"] = not fault(task.word not in seen)
    separator = _seen(answer.separator, task.separator, fault)
    closing = _seen(answer.closing, task.closing, fault)
    verdicts["form"] = separator == task.separator and closing == task.closing
    told = {name: f"{name} {'good' if met else 'bad'}" for name, met in verdicts.items()}
    place = ("found" if task.rule == "include" else "first") if verdicts["rule"] else "missing"
    return (
        f"{' '.join(notes)}. {told['kind']}. "
        f"count {number_word(count)} of {number_word(task.count)}{told['count'][5:]}. "
        f"{task.word} {place}{told['rule'][4:]}. {told['order']}. "
        f"{separator} for {task.separator} {closing} for {task.closing} {told['form']}. "
        f"Score: {sum(verdicts.values())}"
    )


def number_word(count: int) -> str:
    """The count as a word; `many` beyond ten."""
    return NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else "many"


def _seen(used: str | None, asked: str, fault: Callable[[bool], bool]) -> str:
    """What the checker believes to see: the truth, or what was asked for when the fault is
    overlooked.
    """
    if used == asked:
        return "other" if fault(False) else asked
    return (used or "none") if fault(True) else asked


def check_words(order: str, count: int, rng: Random) -> str:
    """A drill: one item after another, each checked against the one before it (no slips)."""
    words = rng.sample(CATEGORIES[rng.choice(list(CATEGORIES))], count)
    notes = [f"one {words[0]} fine"]
    for i in range(1, count):
        notes.append(
            f"{number_word(i + 1)} {words[i]} "
            + ("fine" if in_order(words[i - 1], words[i], order) else "early")
        )
    return " ".join(notes)
