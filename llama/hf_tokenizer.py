"""The tokenizer's files in a Hugging Face directory: added names are read, all of it is written.

Knows no weight and no rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.chat import CHAT_TEMPLATE
from llama.config import LlamaConfig
from llama.fast_tokenizer import added_token, tokenizer_json
from llama.files import read_json_object, replace_file, replace_json
from llama.tokenizer import Tokenizer


def added_tokens(path: Path, vocab_size: int) -> dict[int, str]:
    """The names that a directory gives to ids of the model, from wherever tools have put them.

    Ids beyond the model are passed over: early Llama 2 directories name a `<pad>` that the model
    has no row for. Raises ValueError, naming the file, for what cannot be read and for a second
    name.
    """
    names: dict[int, str] = {}
    for file, token, name in _named(path):
        if not isinstance(token, int) or not isinstance(name, str):
            raise ValueError(f"{file}: an added token must have a text and an id: {name!r}")
        if token < vocab_size and names.setdefault(token, name) != name:
            raise ValueError(
                f"{file} calls the added token {token} {name!r}; another file of the directory "
                f"calls it {names[token]!r}"
            )
    return names


def require_our_chat_format(path: Path) -> None:
    """Raises ValueError for a directory whose chat template is another than Llama 2's.

    A directory without a template is taken at its word: Llama 2's own had none.
    """
    file = path / "tokenizer_config.json"
    template = read_json_object(file).get("chat_template") if file.is_file() else None
    if template is not None and "[INST]" not in str(template):
        raise ValueError(f"{file}: its chat template is not Llama 2's, the only one known here")


def _named(path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """(file, id, text) of every added token in the three files that may tell of them."""
    for file_name, tokens_of in _TELLING.items():
        file = path / file_name
        if file.is_file():
            try:
                found = tokens_of(read_json_object(file))
            except (TypeError, KeyError, AttributeError, ValueError) as error:
                raise ValueError(f"{file}: its added tokens cannot be read: {error}") from error
            yield from ((file, token, name) for token, name in found)


def _by_name(tokens: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(token, name) for name, token in tokens.items()]


def _decoder(settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    tokens = settings.get("added_tokens_decoder") or {}
    return [(int(token), fields["content"]) for token, fields in tokens.items()]


def _listed(settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(token["id"], token["content"]) for token in settings.get("added_tokens") or []]


_TELLING = {
    "added_tokens.json": _by_name,
    "tokenizer_config.json": _decoder,
    "tokenizer.json": _listed,
}


def write_tokenizer(path: Path, tokenizer: Tokenizer, config: LlamaConfig) -> None:
    """All that transformers wants to know of the text side; `<s>` and `</s>` for its generation."""
    special = {
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
    }
    added = {str(token): added_token(name) for token, name in sorted(tokenizer.added.items())}
    replace_file(path / "tokenizer.model", tokenizer.model_bytes)
    replace_json(path / "tokenizer.json", tokenizer_json(tokenizer))
    replace_json(path / "special_tokens_map.json", special)
    replace_json(path / "tokenizer_config.json", {
        **special,
        # Not LlamaTokenizer: in transformers 5 that takes the pieces alone from tokenizer.json, and
        # puts no space before a text that begins with one, as SentencePiece and Llama 2 do.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_seq_len,
        "added_tokens_decoder": added,
        "chat_template": CHAT_TEMPLATE,
    })  # fmt: skip
    (path / "added_tokens.json").unlink(missing_ok=True)  # another checkpoint's
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    replace_json(path / "generation_config.json", ids)
