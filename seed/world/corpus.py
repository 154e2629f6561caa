"""The documents that the base model M0 reads: lists, drills, exercises, checks. All of one small
web.

Every document is drawn from (seed, index) alone. Only tasks of the train split occur in them, so no
test or dev task is ever read, in any wording.
"""

from random import Random

from .people import check_answer, check_words, number_word, write_answer
from .tasks import ORDERS, draw_task, word_task
from .words import CATEGORIES, CATEGORY_OF, SEPARATORS

# How often each kind of document comes. Drills and copies are there from the start: the skills they
# teach (looking back, the order of two words) are what the longer documents are made of.
KINDS = {
    "check": 0.42,
    "exercise": 0.20,
    "order": 0.10,
    "list": 0.07,
    "tasks": 0.07,
    "copy": 0.05,
    "find": 0.05,
    "kind": 0.04,
}


def document(seed: int, index: int) -> str:
    """Document `index` of the corpus."""
    rng = Random(f"{seed} document {index}")
    return _WRITERS[rng.choices(list(KINDS), list(KINDS.values()))[0]](rng)


def _copy(rng: Random) -> str:
    """A few words over and over: the shortest lesson in looking back."""
    words = rng.sample(list(CATEGORY_OF), rng.randint(2, 8))
    return " ".join(words * rng.randint(2, 4))


def _list(rng: Random) -> str:
    """fruits from z to a: quince - plum - apple"""
    category, order = rng.choice(list(CATEGORIES)), rng.choice(list(ORDERS))
    words = rng.sample(CATEGORIES[category], rng.randint(3, 8))
    words.sort(reverse=order == "reverse")
    title = f"{category} {rng.choice(ORDERS[order])}"
    return f"{title}: {SEPARATORS[rng.choice(list(SEPARATORS))].join(words)}"


def _order(rng: Random) -> str:
    """in alphabetical order: one apple fine two fig fine three cherry early."""
    order = rng.choice(list(ORDERS))
    return f"{rng.choice(ORDERS[order])}: {check_words(order, rng.randint(3, 8), rng)}."


def _kind(rng: Random) -> str:
    """fruits: one apple fine two bear alien three fig fine."""
    category = rng.choice(list(CATEGORIES))
    words = [
        rng.choice(CATEGORIES[category] if rng.random() < 0.6 else list(CATEGORY_OF))
        for _ in range(5)
    ]
    notes = [
        f"{number_word(i)} {w} {'fine' if CATEGORY_OF[w] == category else 'alien'}"
        for i, w in enumerate(words, 1)
    ]
    return f"{category}: {' '.join(notes)}."


def _find(rng: Random) -> str:
    """apple, fig, kiwi: fig found. lemon missing. apple first. kiwi missing."""
    words = rng.sample(CATEGORIES[rng.choice(list(CATEGORIES))], rng.randint(4, 8))
    kept = words[: rng.randint(2, len(words) - 1)]
    notes = []
    for word in rng.sample(words, 4):
        notes.append(f"{word} {'found' if word in kept else 'missing'}.")
        if rng.random() < 0.5:
            notes.append(f"{word} {'first' if word == kept[0] else 'missing'}.")
    return f"{SEPARATORS[rng.choice(list(SEPARATORS))].join(kept)}: {' '.join(notes)}"


def _tasks(rng: Random) -> str:
    """A page of instructions."""
    return "\n".join(f"Task: {word_task(draw_task(rng), rng)}" for _ in range(rng.randint(5, 10)))


def _exercise(rng: Random) -> str:
    """An instruction and somebody's answer."""
    task = draw_task(rng)
    return f"Task: {word_task(task, rng)}\nAnswer: {write_answer(task, rng)}"


def _check(rng: Random) -> str:
    """An instruction, somebody's answer, somebody's check."""
    task = draw_task(rng)
    answer = write_answer(task, rng)
    return (
        f"Task: {word_task(task, rng)}\nAnswer: {answer}\nCheck: {check_answer(task, answer, rng)}"
    )


_WRITERS = {
    "check": _check,
    "exercise": _exercise,
    "order": _order,
    "list": _list,
    "kind": _kind,
    "tasks": _tasks,
    "copy": _copy,
    "find": _find,
}
