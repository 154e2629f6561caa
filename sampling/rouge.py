"""ROUGE-L between texts, and a fast answer to "is anything kept too similar?". Knows no model.

The words and the F1 are those of the `rouge_score` package without stemming (Lin, 2004).
"""

# N kept texts that may be similar, L words of the longest of them

import re
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"[a-z0-9]+")
CHUNK = 4096  # kept texts that are compared at once


def words(text: str) -> list[str]:
    """The runs of lower-cased ASCII letters and digits."""
    return WORD.findall(text.lower())


def rouge_l(a_words: Sequence[str], b_words: Sequence[str]) -> float:
    """F1 of the longest common subsequence: 2·LCS / (|a| + |b|); 0 if either is empty.

    That is the harmonic mean of precision LCS/|a| and recall LCS/|b|.
    """
    if not a_words or not b_words:
        return 0.0
    return 2 * _lcs(a_words, b_words) / (len(a_words) + len(b_words))


def _lcs(a_words: Sequence[str], b_words: Sequence[str]) -> int:
    """The length of the longest common subsequence, one integer step a word of b (Hyyrö, 2004).

    Bit i of `open_` is 0 where the best length grows between a's first i and first i + 1 words.
    """
    places = _places(a_words)
    every = (1 << len(a_words)) - 1
    open_ = every
    for word in b_words:
        met = open_ & places.get(word, 0)
        open_ = ((open_ + met) | (open_ - met)) & every
    return len(a_words) - open_.bit_count()


def _places(a_words: Sequence[str]) -> dict[str, int]:
    """For each word, the bits of its places."""
    places: dict[str, int] = {}
    for i, word in enumerate(a_words):
        places[word] = places.get(word, 0) | 1 << i
    return places


class Index:
    """Kept texts, and whether a new one has ROUGE-L ≥ threshold with any of them.

    A common subsequence has no more words than the two texts share, and shared words are counted
    through lists "which texts hold this word". What passes that bound is compared all at once.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(
                f"a ROUGE-L threshold lies above 0 and at most at 1, not at {threshold}"
            )
        self.threshold = threshold
        self._number: dict[str, int] = {}  # word → its number, from 1; 0 stands for no word
        self._holders: dict[tuple[str, int], array[int]] = {}  # (word, its i-th time) → texts
        self._words = array("I")  # the numbers of all texts' words, one text after the other
        self._starts = array(
            "Q", [0]
        )  # where each text begins in `_words`, and where the last ends

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, text_words: Sequence[str]) -> None:
        """Keeps a text."""
        for key in _times(text_words):
            self._holders.setdefault(key, array("I")).append(len(self))
        numbers = (self._number.setdefault(word, len(self._number) + 1) for word in text_words)
        self._words.extend(numbers)
        self._starts.append(len(self._words))

    def similar(self, text_words: Sequence[str]) -> bool:
        """Whether `rouge_l(text_words, kept) >= threshold` for any kept text."""
        candidates_N = self._sharing(text_words)
        return any(
            bool((self._rouge(text_words, candidates_N[i : i + CHUNK]) >= self.threshold).any())
            for i in range(0, len(candidates_N), CHUNK)
        )

    def _sharing(self, text_words: Sequence[str]) -> np.ndarray:
        """The kept texts that share enough words with this one, most shared words first, [N]."""
        held = [self._holders[key] for key in _times(text_words) if key in self._holders]
        if not held:
            return np.zeros(0, dtype=np.int64)
        holders = np.concatenate([np.frombuffer(texts, dtype=np.uintc) for texts in held])
        shared = np.bincount(holders, minlength=len(self))
        lengths = np.diff(self._bounds())
        # The very expression of rouge_l, so that rounding cannot prune what rouge_l would find.
        bound = 2 * shared / (len(text_words) + lengths)
        candidates_N = np.flatnonzero(bound >= self.threshold)
        return candidates_N[np.argsort(-bound[candidates_N], kind="stable")]

    def _rouge(self, text_words: Sequence[str], candidates_N: np.ndarray) -> np.ndarray:
        """ROUGE-L with each candidate, [N]: what `_lcs` does, for all of them word by word."""
        bounds = self._bounds()
        starts_N, ends_N = bounds[candidates_N], bounds[candidates_N + 1]
        places_NL = self._place_table(text_words)[self._numbers(starts_N, ends_N)]
        every = (1 << len(text_words)) - 1
        open_N = np.full(len(candidates_N), every, dtype=places_NL.dtype)
        for places_N in places_NL.T:
            met_N = open_N & places_N
            open_N = ((open_N + met_N) | (open_N - met_N)) & every
        longest_N = len(text_words) - np.array([int(bits).bit_count() for bits in open_N])
        return np.asarray(2 * longest_N / (len(text_words) + ends_N - starts_N))

    def _place_table(self, text_words: Sequence[str]) -> np.ndarray:
        """For the number of each word that is kept somewhere, the bits of its places in this text.

        64 words fit a machine's integer; a longer text takes Python's own, more slowly.
        """
        kind = np.uint64 if len(text_words) <= 64 else object
        table = np.zeros(len(self._number) + 1, dtype=kind)
        for word, bits in _places(text_words).items():
            if word in self._number:
                table[self._number[word]] = bits
        return table

    def _numbers(self, starts_N: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
        """The numbers of the words between each start and end, [N, L], filled up with 0."""
        every_word = np.frombuffer(self._words, dtype=np.uintc)
        at_NL = starts_N[:, None] + np.arange((ends_N - starts_N).max())
        numbers_NL = every_word[np.minimum(at_NL, len(every_word) - 1)]
        return np.where(at_NL < ends_N[:, None], numbers_NL, 0)

    def _bounds(self) -> np.ndarray:
        return np.frombuffer(self._starts, dtype=np.uint64).astype(np.int64)


def _times(text_words: Sequence[str]) -> list[tuple[str, int]]:
    """Each word with how often it came before: of equal keys two texts then share min(m, n)."""
    seen: Counter[str] = Counter()
    keys = []
    for word in text_words:
        keys.append((word, seen[word]))
        seen[word] += 1
    return keys
