"""Makes seed data out of instructions with answers: who is learnt from, who is measured on.

| file | what it takes | the paper's v1, v3 |
|---|---|---|
| held_out.jsonl | instructions, to measure following on | (256, which are from elsewhere) |
| ranked.jsonl | ranked answers, to measure judging on | 531, 541 |
| ift.jsonl | best-ranked answers, to learn from | 3,200 |
| eft_ranked.jsonl | ranked answers, to make judgements of | (1,775, 1,630 rows came of them) |

No instruction is in two files. The seed draws which go where, in the order of the table. What is
measured on is drawn from all that can serve; what is learnt from is first that which can serve no
other end, so that ranked answers last. Knows no file and no source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from seed.items import Item
from seed.rows import Row


@dataclass(frozen=True)
class Sizes:
    """How much of each; None: all that is left."""

    ift: int  # best answers
    ranked: int  # answers in ranked sets; a set is not torn apart, so there may be a few more
    held_out: int  # instructions
    eft_ranked: int | None = None  # answers in ranked sets

    def __post_init__(self) -> None:
        for name in ("ift", "ranked", "held_out", "eft_ranked"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")


PRESETS = {
    "paper-v1": Sizes(ift=3200, ranked=531, held_out=256),
    "paper-v3": Sizes(ift=3200, ranked=541, held_out=256),
}


def split(items: Sequence[Item], sizes: Sizes, seed: int) -> dict[str, list[Row]]:
    """The rows of each file by its name, without `.jsonl`.

    Raises ValueError, with what there is, if there is less than `sizes` asks for.
    """
    pool = [item for item in items if item.flaw is None]
    Random(f"{seed}/seed data").shuffle(pool)

    def ranked(item: Item) -> int:
        return len(item.ranked)

    files = {}
    files["held_out"], pool = _taken(pool, "held_out", sizes.held_out, lambda item: 1, _held_out)
    files["ranked"], pool = _taken(pool, "ranked", sizes.ranked, ranked, _ranked)
    pool.sort(key=lambda item: bool(item.ranked))  # stable: still as drawn
    files["ift"], pool = _taken(pool, "ift", sizes.ift, lambda item: bool(item.best), _ift)
    files["eft_ranked"], pool = _taken(pool, "eft_ranked", sizes.eft_ranked, ranked, _ranked)
    return files


def _taken(
    pool: Sequence[Item],
    name: str,
    size: int | None,
    worth: Callable[[Item], int],
    row: Callable[[Item], Row],
) -> tuple[list[Row], list[Item]]:
    """Rows of the first items worth `size` together, and the items that are left."""
    rows, left, total = [], [], 0
    for item in pool:
        if (size is None or total < size) and worth(item):
            rows.append(row(item))
            total += worth(item)
        else:
            left.append(item)
    if size is not None and total < size:
        raise ValueError(
            f"{name}: {size} asked for, {total} left in these sources; add a source, or ask for "
            "fewer of it, or of what is taken before it (held_out, ranked, ift, eft_ranked)"
        )
    return rows, left


def _held_out(item: Item) -> Row:
    return {"id": item.id, "prompt": item.prompt}


def _ift(item: Item) -> Row:
    assert item.best is not None
    return {"id": item.id, "prompt": item.prompt, "response": item.best.text}


def _ranked(item: Item) -> Row:
    """Ranks are counted anew from 0, for some answers were left out."""
    ranks = [(answer.text, answer.rank) for answer in item.ranked if answer.rank is not None]
    order = sorted({rank for _, rank in ranks})
    responses = [{"text": text, "rank": order.index(rank)} for text, rank in ranks]
    return {"id": item.id, "prompt": item.prompt, "responses": responses}
