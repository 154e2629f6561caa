"""Decides which of the prompts that a model wrote are kept, and says why the others are not.

Knows no model. Thresholds are the caller's: a small world's prompts are short and much alike.
"""

import re
from collections.abc import Collection, Sequence

from sampling.rouge import Index, words

REASONS = (
    *("empty", "too_short", "too_long", "keyword"),
    *("looping", "garbled", "foreign", "repeat", "similar"),
)
LONGEST_PHRASE = 8  # words; a phrase up to so long, three times in a row, is a loop
READABLE = 1 / 2  # of the characters of a text, spaces apart, are letters or digits: at least
FOREIGN = 1 / 3  # of the letters of a text are in nothing that was kept: at most


class Sieve:
    """The filters of self-instruct, and all that was kept so far.

    min_words, max_words: the length of a prompt, in words between spaces.
    keywords: a prompt that holds one of these words or phrases (whole, whatever the case) asks for
        what a language model cannot do: "image", "bar chart", …
    similarity: the ROUGE-L F1 with anything kept from which on a prompt is too similar; None: only
        repeats are.
    forbidden: held-out prompts; no repeat of one is ever kept.

    Besides, what a model writes when it has lost its way is left out: a phrase that goes round and
    round ("looping"), signs without words ("garbled"), another script than that of what was kept
    first, the seed ("foreign").
    """

    def __init__(
        self,
        *,
        min_words: int = 3,
        max_words: int = 150,
        keywords: Collection[str] = (),
        similarity: float | None = 0.7,
        forbidden: Collection[str] = (),
    ) -> None:
        self.min_words, self.max_words = min_words, max_words
        phrases = [re.escape(phrase) for phrase in map(_plain, keywords) if phrase]
        self._keyword = re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)") if phrases else None
        self._known = {_plain(text) for text in forbidden}
        self._letters: set[str] = set()
        self._index = None if similarity is None else Index(similarity)

    def unfit(self, text: str) -> str | None:
        """Why no prompt should look like this, whatever was kept: one of REASONS, or None."""
        length = len(text.split())
        if not length:
            return "empty"
        if length < self.min_words:
            return "too_short"
        if length > self.max_words:
            return "too_long"
        if self._keyword is not None and self._keyword.search(_plain(text)):
            return "keyword"
        if looping(_plain(text).split()):
            return "looping"
        if not readable(text):
            return "garbled"
        return "foreign" if self._is_foreign(text) else None

    def _is_foreign(self, text: str) -> bool:
        letters = [letter for letter in text.casefold() if letter.isalpha()]
        strange = sum(letter not in self._letters for letter in letters)
        return bool(self._letters) and strange > FOREIGN * len(letters)

    def known(self, text: str) -> str | None:
        """Whether it is a "repeat" (but for case and spaces) or "similar", or None."""
        if _plain(text) in self._known:
            return "repeat"
        if self._index is not None and self._index.similar(words(text)):
            return "similar"
        return None

    def keep(self, text: str) -> None:
        """From now on this text is among those kept."""
        self._known.add(_plain(text))
        self._letters.update(letter for letter in text.casefold() if letter.isalpha())
        if self._index is not None:
            self._index.add(words(text))


def looping(said: Sequence[str]) -> bool:
    """Whether a phrase comes three times in a row: `a b a b a b`."""
    for size in range(1, min(LONGEST_PHRASE, len(said) // 3) + 1):
        run = 0  # words in a row that are the same as `size` words before
        for now, before in zip(said[size:], said):
            run = run + 1 if now == before else 0
            if run == 2 * size:
                return True
    return False


def readable(text: str) -> bool:
    """Whether enough of it is letters and digits, of whatever script."""
    marks = [mark for mark in text if not mark.isspace()]
    return sum(mark.isalnum() for mark in marks) >= READABLE * len(marks)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
