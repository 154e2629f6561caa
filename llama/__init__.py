"""Llama 2: tokens → logits, with its text, its files and its ranks.

Imports nothing else of this project.
"""

from llama.chat import encode_dialog, encode_document, encode_example, encode_prompt, encode_raw
from llama.config import PRESETS, LlamaConfig
from llama.model import Llama
from llama.tokenizer import Tokenizer, train_tokenizer
from llama.weights import fingerprint, load, load_sharded, load_split, load_state, save

__all__ = [
    "PRESETS",
    "Llama",
    "LlamaConfig",
    "Tokenizer",
    "encode_dialog",
    "encode_document",
    "encode_example",
    "encode_prompt",
    "encode_raw",
    "fingerprint",
    "load",
    "load_sharded",
    "load_split",
    "load_state",
    "save",
    "train_tokenizer",
]
