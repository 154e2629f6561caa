"""Directories as they come from elsewhere: added names, Llama 3's, and the same words from
`transformers` as from us.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_llama_chat import DIALOG
from test_llama_tokenizer import NASTY
from tiny_llama import GROUPED, LINES, same_weights, tiny_model, tiny_tokenizer

import llama
from llama.chat import encode_dialog
from llama.meta import write_meta
from llama.tokenizer import Tokenizer
from llama.weights import held
from sampling.batch import Decoding
from sampling.engine import Request, generate

PADDED = replace(GROUPED, vocab_size=408)  # a name for 400, one for 401, six rows of nothing
WORLD = Path(__file__).parent.parent / "seed" / "world" / "base" / "tokenizer.model"

pytestmark = pytest.mark.filterwarnings("default")  # not our warnings


def edit_json(file: Path, **fields) -> None:
    """A JSON object on the disk, with some fields changed."""
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | fields))


@pytest.fixture
def padded(tmp_path) -> Path:
    """A directory whose model has more ids than the SentencePiece model has pieces."""
    llama.save(tiny_model(PADDED), tiny_tokenizer(), tmp_path / "padded")
    return tmp_path / "padded"


# Added tokens

TOLD = {
    "added_tokens.json": {"<pad>": 400, "<|im_end|>": 401, "<beyond the model>": 408},
    "tokenizer_config.json": {
        "added_tokens_decoder": {"2": {"content": "</s>"}, "400": {"content": "<pad>"},
                                 "401": {"content": "<|im_end|>"}}
    },
    "tokenizer.json": {
        "added_tokens": [{"id": 400, "content": "<pad>"}, {"id": 401, "content": "<|im_end|>"}]
    },
}  # fmt: skip


@pytest.mark.parametrize("file", TOLD)
def test_added_names_are_kept_and_never_come_from_text(padded, file: str) -> None:
    transformers = pytest.importorskip("transformers")
    edit_json(padded / file, **TOLD[file])
    for path in (padded, padded.parent / "again"):
        model, tokenizer = llama.load(path)
        assert tokenizer.added == {400: "<pad>", 401: "<|im_end|>"}
        llama.save(model, tokenizer, padded.parent / "again")
    assert same_weights(model, tiny_model(PADDED))
    other = transformers.AutoTokenizer.from_pretrained(padded.parent / "again")
    assert len(other) == 402 and other.convert_tokens_to_ids(["<pad>", "<|im_end|>"]) == [400, 401]
    text = "a<pad>b<|im_end|></s>"
    assert other(text, add_special_tokens=False).input_ids.count(400) == 1
    ours = tokenizer.encode(text)
    assert max(ours) < 400
    plain = other(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert plain == ours


def test_ids_that_are_no_piece_leave_no_trace_in_text(padded) -> None:
    _, tokenizer = llama.load(padded)
    ids = tokenizer.encode("No, it is not")
    assert tokenizer.decode([1, *ids, 400, 407, 2]) == "No, it is not"
    with pytest.raises(ValueError, match="408 is outside the vocabulary of 408"):
        tokenizer.decode([408])


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("added_tokens.json", {"<pad>": "400"}, r"added_tokens\.json: an added token must"),
        ("added_tokens.json", {"<a>": 400, "<b>": 400}, "calls the added token 400 '<b>'; another"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "cannot be read: invalid"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": {}}}, "cannot be read"),
        ("tokenizer.json", {"added_tokens": [400]}, r"tokenizer\.json: its added tokens cannot"),
    ],
)
def test_damaged_names_are_refused_by_file(padded, file, fields, message) -> None:
    edit_json(padded / file, **fields)
    with pytest.raises(ValueError, match=message):
        llama.load(padded)


def test_saving_over_another_checkpoint_takes_no_name_from_it(padded) -> None:
    edit_json(padded / "added_tokens.json", **{"<old>": 405})
    llama.save(tiny_model(PADDED), tiny_tokenizer(), padded)
    assert llama.load(padded)[1].added == {}


def test_meta_keeps_a_vocabulary_wider_than_the_pieces(tmp_path) -> None:
    model = tiny_model(PADDED)
    write_meta(tmp_path, held(model.state_dict()), PADDED, tiny_tokenizer())
    again, tokenizer = llama.load(tmp_path)
    assert same_weights(again, model) and tokenizer.id_count == 408


# Llama 3 and others, which are not to be misread


def test_llama_3_from_hugging_face_is_refused(tmp_path) -> None:
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json alone, .* Llama 3's .* not supported"):
        llama.load(tmp_path)
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    edit_json(tmp_path / "config.json", rope_scaling=scaling)
    with pytest.raises(ValueError, match=r"config\.json: rope_scaling asks for 'llama3'"):
        llama.load(tmp_path)


def test_llama_3_from_meta_is_refused(tmp_path) -> None:
    write_meta(tmp_path, held(tiny_model().state_dict()), GROUPED, tiny_tokenizer())
    edit_json(tmp_path / "params.json", use_scaled_rope=True)
    with pytest.raises(ValueError, match=r"params\.json: use_scaled_rope asks for Llama 3\.1"):
        llama.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(ValueError, match=r"a table in base64, is Llama 3's"):
        llama.load(tmp_path)


def test_a_tokenizer_that_changes_its_text_is_refused(tmp_path) -> None:
    """Other models' SentencePiece files join spaces or compose signs (NFKC)."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(tmp_path / "t"), vocab_size=380,
        model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"t\.model changes spaces or signs of a text"):
        Tokenizer(tmp_path / "t.model")


# The same words from transformers


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(our tokenizer, transformers') for the small vocabulary and for the embedded world's."""
    transformers = pytest.importorskip("transformers")
    found = []
    for ours in (tiny_tokenizer(), Tokenizer(WORLD)):
        path = tmp_path_factory.mktemp("tokenizer")
        llama.save(tiny_model(replace(GROUPED, vocab_size=ours.vocab_size)), ours, path)
        found.append((ours, transformers.AutoTokenizer.from_pretrained(path)))
    return found


def as_text(other, text: str) -> list[int]:
    """Ids of a text in which nothing is taken for a control token, as ours takes all text."""
    return other(text, add_special_tokens=False, split_special_tokens=True).input_ids


def test_nasty_text_has_transformers_ids(theirs) -> None:
    spelt = ["</s>", " <s>a", "a</s></s> b", "<unk>", "<s>[INST] <<SYS>>\n</s> [/INST]"]
    for ours, other in theirs:
        for text in [*NASTY, *spelt]:
            assert as_text(other, text) == ours.encode(text), text


@given(st.text() | st.text("ab <s/>[IN]\n\t\u00a0é日🏖\u200d", max_size=40))
def test_any_text_has_transformers_ids(theirs, text: str) -> None:
    for ours, other in theirs:
        assert as_text(other, text) == ours.encode(text)


def test_ids_differ_where_the_control_tokens_are_read(theirs) -> None:
    """The control: unless told, transformers takes a `</s>` in a text for the token."""
    for ours, other in theirs:
        assert other("a</s>", add_special_tokens=False).input_ids != ours.encode("a</s>")


def test_the_same_chat_gives_the_same_greedy_text(tmp_path) -> None:
    """A dialog with a system message: template, prompt, 12 tokens, words; all through `Auto…`.

    Only pieces of text are written: broken UTF-8 looks different there, by a U+FFFD or so.
    """
    transformers = pytest.importorskip("transformers")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with torch.no_grad():
        model.output.weight[:259] = 0  # never the largest of 400 logits
    llama.save(model, tokenizer, tmp_path)
    their_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    written: set[int] = set()
    for dialog in (DIALOG[1:2], DIALOG[:2], DIALOG[:4], DIALOG):
        prompt, _ = encode_dialog(tokenizer, dialog)
        inputs = other.apply_chat_template(
            dialog, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert inputs["input_ids"].tolist() == [prompt]
        made = their_model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        decoding = Decoding(0.0, 1.0, 12, frozenset({tokenizer.eos_id}))
        [[sample]] = generate(model, [Request("a", prompt)], decoding, seed=0)
        assert [*sample.token_ids, *[2] * sample.finished] == made.tolist()
        written |= set(sample.token_ids)
        words = other.decode(made, skip_special_tokens=True)
        assert words == tokenizer.decode(sample.token_ids)
    assert len(written) > 10
