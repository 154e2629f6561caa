"""`python -m bench.rouge [--kept N]`: how long the similarity filter of new prompts takes.

Texts are drawn as prompts lie: common words often, rare ones seldom (Zipf), 5 to 40 words. Half of
the new ones are kept ones with up to half of their words replaced.
"""

import argparse
import random
import time
from itertools import accumulate

from bench.options import fraction, positive
from sampling.rouge import Index, rouge_l

WORDS, LEAST, MOST = 20_000, 5, 40
ASKED = 500  # new texts that are compared with all kept ones
BY_PAIRS = 5  # of them, those that are compared pair by pair too


def texts(count: int, seed: int) -> list[list[str]]:
    """Random texts, as lists of words."""
    draw = random.Random(seed)
    bounds = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))
    vocabulary = [f"w{number}" for number in range(WORDS)]
    return [
        draw.choices(vocabulary, cum_weights=bounds, k=draw.randint(LEAST, MOST))
        for _ in range(count)
    ]


def altered(text: list[str], by: list[str], draw: random.Random) -> list[str]:
    """The text with a share of its words, up to a half, taken from another."""
    share = draw.uniform(0, 0.5)
    return [draw.choice(by) if draw.random() < share else word for word in text]


def main(arguments: list[str] | None = None) -> None:
    """Prints milliseconds a new text, for the index and for comparing pair by pair."""
    parser = argparse.ArgumentParser(prog="python -m bench.rouge", description=__doc__)
    parser.add_argument("--kept", type=positive, default=50_000, help="texts (%(default)s)")
    parser.add_argument("--threshold", type=fraction, default=0.7, help="(%(default)s)")
    given = parser.parse_args(arguments)
    kept, new = texts(given.kept, seed=0), texts(ASKED, seed=1)
    draw = random.Random(2)
    new = [altered(draw.choice(kept), text, draw) if n % 2 else text for n, text in enumerate(new)]
    index = Index(given.threshold)
    started = time.perf_counter()
    for text in kept:
        index.add(text)
    adding = (time.perf_counter() - started) / len(kept)
    started = time.perf_counter()
    found = [index.similar(text) for text in new]
    asking = (time.perf_counter() - started) / len(new)
    started = time.perf_counter()
    pairs = [any(rouge_l(text, k) >= given.threshold for k in kept) for text in new[:BY_PAIRS]]
    by_pairs = (time.perf_counter() - started) / BY_PAIRS
    assert pairs == found[:BY_PAIRS], "the index and the pairs disagree"
    print(f"{len(kept):,} texts kept, {sum(found)} of {len(new)} new ones similar to one of them")
    print(f"index: {adding * 1e3:.3f} ms to add a text, {asking * 1e3:.2f} ms to ask for one")
    print(f"pair by pair: {by_pairs * 1e3:,.0f} ms to ask, {by_pairs / asking:,.0f} times as long")


if __name__ == "__main__":
    main()
