"""The same vocabulary as a `tokenizer.json`, for tools that read no SentencePiece model.

Knows that format, and nothing of models.
"""

from __future__ import annotations

from typing import Any

from llama.tokenizer import Tokenizer

SPACE = "\u2581"  # how pieces spell a space


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """What to write into `tokenizer.json`: byte-pair encoding with a space put before the text and
    bytes for the rest.
    """
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    special = {id_: pieces[id_] for id_ in (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)}
    special |= tokenizer.added
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, **added_token(name)} for token, name in sorted(special.items())
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _begin_with(pieces[tokenizer.bos_id], tokenizer.bos_id),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[tokenizer.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": _merges(tokenizer.scores()),
        },
    }  # fmt: skip


def added_token(name: str) -> dict[str, Any]:
    """How these files describe a token that is found in text before anything is cut into pieces."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": name, **plain, "special": True}


def _begin_with(piece: str, token: int) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": piece, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, {"SpecialToken": {"id": piece, "type_id": 1}}, second],
        "special_tokens": {piece: {"id": piece, "ids": [token], "tokens": [piece]}},
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """Every way to join two pieces into a third, the best third first: SentencePiece joins in the
    order of scores.
    """
    joins = [
        (-score, at, piece)
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    return [[piece[:at], piece[at:]] for _, at, piece in sorted(joins)]
