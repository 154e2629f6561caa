"""Decides which of the prompts that a model wrote are kept, and says why the others are not.

Knows no model. Thresholds are the caller's: a small world's prompts are short and much alike.
"""

from collections.abc import Collection

from sampling.rouge import Index, words

REASONS = ("empty", "too_short", "too_long", "keyword", "repeat", "similar")


class Sieve:
    """The filters of self-instruct, and all that was kept so far.

    min_words, max_words: the length of a prompt, in words between spaces.
    keywords: a prompt that holds one of these (whole words, whatever the case) asks for what a
        language model cannot do: "image", "graph", …
    similarity: the ROUGE-L F1 with anything kept from which on a prompt is too similar; None: only
        repeats are.
    forbidden: held-out prompts; no repeat of one is ever kept.
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
        self._keywords = {keyword.lower() for keyword in keywords}
        self._known = {_plain(text) for text in forbidden}
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
        return "keyword" if self._keywords.intersection(words(text)) else None

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
        if self._index is not None:
            self._index.add(words(text))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
