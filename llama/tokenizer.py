"""Text to token ids and back: SentencePiece, in Llama's dialect.

A control id (`<s>`, `</s>`) never comes from text: a text that spells one gets ordinary pieces.
Knows no dialog, no file but its model, and no tensor. What belongs between turns is inserted by
`chat`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece

from llama.files import replace_file

PROBE = "  two  spaces\n\tﬁ ½ e\u0301"  # other dialects join, drop or compose some of these
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")  # a line of Llama 3's table: base64, rank


class Tokenizer:
    """A `tokenizer.model` file, and the ids that a model may have beyond its pieces.

    added: names of such ids (`<pad>`); to us they are control ids, and text never becomes one.
    id_count: how many ids the model has; what is beyond pieces and names is padding of its table.
    Raises ValueError for a file that is none, that has no `<s>` or no `</s>`, or that does not keep
    text as it is.
    """

    def __init__(
        self, path: str | Path, added: Mapping[int, str] | None = None, id_count: int = 0
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; {self._expected()}")
        self.model_bytes = self.path.read_bytes()
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except (RuntimeError, UnicodeDecodeError) as error:  # the latter: in its own complaint
            raise ValueError(
                f"{self.path} is not a SentencePiece model ({error}); {self._expected()}"
            ) from error
        self.vocab_size: int = self._pieces.vocab_size()  # of the pieces alone
        self.id_count = max(self.vocab_size, id_count)
        self.added = {id_: name for id_, name in (added or {}).items() if id_ >= self.vocab_size}
        self.bos_id: int = self._control("<s>", self._pieces.bos_id())
        self.eos_id: int = self._control("</s>", self._pieces.eos_id())
        self.unk_id: int = self._pieces.unk_id()
        self.pad_id: int | None = self._pieces.pad_id() if self._pieces.pad_id() >= 0 else None

        if not self._keeps(PROBE):
            raise ValueError(f"{self.path} changes spaces or signs of a text; Llama 2's does not")
        self.newline_id: int = self.encode("\n")[-1]  # behind the space that every text begins with

    def _keeps(self, text: str) -> bool:
        try:
            return self.decode(self.encode(text)) == text
        except UnicodeDecodeError:  # a piece that is no UTF-8: the file is damaged
            return False

    def _expected(self) -> str:
        is_table = self.path.is_file() and TIKTOKEN.match(self.path.read_bytes())
        if is_table or self.path.with_name("tokenizer.json").is_file():
            return (
                "Llama 2's tokenizer.model, a SentencePiece model, was expected; a tokenizer.json "
                "alone, or a table in base64, is Llama 3's or a later one's, and not supported"
            )
        return "a SentencePiece model (tokenizer.model) was expected"

    def _control(self, name: str, token: int) -> int:
        if token < 0:
            raise ValueError(f"{self.path} defines no {name} piece, which Llama needs")
        return token

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without `<s>` and `</s>`.

        As in Llama, a space is put before the text, which decoding takes away; characters outside
        the vocabulary become bytes. So decode(encode(text)) is the text (only U+2581, Llama's sign
        for a space, comes back as one). Raises ValueError for half a surrogate pair, which no UTF-8
        can hold.
        """
        text.encode()
        ids: list[int] = self._pieces.encode(text, add_bos=False, add_eos=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; control ids and ids that are no piece leave no trace, broken UTF-8
        becomes U+FFFD.

        Raises ValueError for an id outside the vocabulary.
        """
        for token in ids:
            if not 0 <= token < self.id_count:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.id_count}")
        text: str = self._pieces.decode([token for token in ids if token < self.vocab_size])
        return text

    def piece(self, token: int) -> str:
        """How the vocabulary spells one id; U+2581 stands for a space."""
        piece: str = self._pieces.id_to_piece(token)
        return piece

    def scores(self) -> dict[str, float]:
        """The score of each piece that is text, not control nor byte; higher is joined first."""
        pieces = self._pieces
        no_text = (pieces.is_control, pieces.is_unknown, pieces.is_byte, pieces.is_unused)
        return {
            self.piece(token): pieces.get_score(token)
            for token in range(self.vocab_size)
            if not any(is_kind(token) for is_kind in no_text)
        }


def train_tokenizer(
    lines: Iterable[str], path: str | Path, vocab_size: int, character_coverage: float = 1.0
) -> None:
    """Trains byte-pair encoding in Llama's dialect; writes `vocab_size` pieces to `path`.

    The dialect: `<unk>` 0, `<s>` 1, `</s>` 2, then 256 bytes for what has no piece; digits stand
    alone; text is taken as it is, with a space put before it. The same lines give the same file.
    Characters beyond `character_coverage` of the text (the rarest) get no piece of their own.
    Raises ValueError if the text is too small or the vocabulary too narrow.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in line.split("\n") if part),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2**20,  # bytes; longer lines would be left out in silence
            num_threads=1,  # with more, ties may fall either way
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no vocabulary of {vocab_size} pieces can be made of this text ({error})"
        ) from error
    replace_file(path, model.getvalue())
