"""The tokenizer: its dialect, what text can and cannot become, and its parity with other readers of
the same file.
"""

from __future__ import annotations

import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import LINES, tiny_tokenizer

from llama.fast_tokenizer import tokenizer_json
from llama.tokenizer import Tokenizer, train_tokenizer

NASTY = [
    "", " ", "  ", "a", " a", "  two spaces", "a  b   c", "trailing ", "\n", "\n\n", "a\nb\n",
    "\r\n\t", "</s>", "<s>", "<unk>", "a</s>b", "<0x0A>", "[INST] <<SYS>>", "1234567890", "3.14",
    "日本語", "🏖️👩\u200d👩\u200d👧", "e\u0301", "\u00a0\u3000", "\x00", "a\x00b", "\ufeffx",
    "\u202eabc", "x" * 5000, "é" * 300, "Über naïve £½",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_back(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text().filter(lambda text: "\u2581" not in text))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_holds_no_control_id(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_control_ids_leave_no_trace_in_decoded_text() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode("No, it is not"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "No, it is not"


def test_the_dialect() -> None:
    tokenizer = tiny_tokenizer()
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (
        0,
        1,
        2,
        None,
    )
    assert tokenizer.vocab_size == 400
    assert tokenizer.piece(tokenizer.newline_id) == "<0x0A>"
    assert [tokenizer.piece(token) for token in range(3, 259)] == [
        f"<0x{n:02X}>" for n in range(256)
    ]
    spelt = [tokenizer.piece(token) for token in tokenizer.encode("1024")]
    assert spelt == ["\u2581", "1", "0", "2", "4"]  # digits stand alone
    assert (
        tokenizer.piece(tokenizer.encode("answer")[0])[0] == "\u2581"
    )  # the space put before a text


def test_parity_with_sentencepiece_itself(tmp_path) -> None:
    tokenizer = tiny_tokenizer()
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in [*NASTY, *LINES]:
        assert tokenizer.encode(text) == plain.encode(text)


def test_parity_with_tokenizers_and_its_one_exception(tmp_path) -> None:
    """`tokenizer.json` gives the same ids, but a reader of that file takes `</s>` in a text for the
    control id.
    """
    fast = pytest.importorskip("tokenizers")
    tokenizer = tiny_tokenizer()
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer_json(tokenizer)), encoding="utf-8")
    other = fast.Tokenizer.from_file(str(file))
    control = ("</s>", "<s>", "<unk>")
    for text in [*NASTY, *LINES]:
        ids = other.encode(text, add_special_tokens=False).ids
        assert (ids == tokenizer.encode(text)) != any(name in text for name in control), text
        if not any(name in text for name in control):
            assert other.decode(ids) == text
    assert other.encode("a").ids == [tokenizer.bos_id, *tokenizer.encode("a")]


def test_training_is_deterministic(tmp_path) -> None:
    for name in ("a", "b"):
        train_tokenizer(iter(LINES), tmp_path / name, 380)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Tokenizer(tmp_path / "a").vocab_size == 380


def test_rare_characters_may_be_left_to_bytes(tmp_path) -> None:
    train_tokenizer([*LINES * 50, "ж"], tmp_path / "all", 400)
    train_tokenizer([*LINES * 50, "ж"], tmp_path / "most", 400, character_coverage=0.9999)
    assert "ж" in Tokenizer(tmp_path / "all").scores()
    assert "ж" not in Tokenizer(tmp_path / "most").scores()


@pytest.mark.parametrize(("lines", "size"), [([], 400), (["abc"], 400), (LINES, 260)])
def test_a_vocabulary_that_cannot_be_made_is_refused(tmp_path, lines, size) -> None:
    with pytest.raises(ValueError, match=str(size)):
        train_tokenizer(lines, tmp_path / "x", size)
    assert not list(tmp_path.iterdir())


def test_users_errors_name_the_cause(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        Tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model at all")
    with pytest.raises(ValueError, match=r"bad\.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "bad.model")
    with pytest.raises(ValueError, match="surrogates"):
        tiny_tokenizer().encode("half a pair: \ud800")
    for token in (-1, 400):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tiny_tokenizer().decode([token])
