"""A small tokenizer and small models that several tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from llama.config import LlamaConfig
from llama.model import Llama
from llama.tokenizer import Tokenizer, train_tokenizer

GROUPED = LlamaConfig(
    vocab_size=400, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=36, max_seq_len=256
)

LINES = [
    "[INST] Count the words of this line, please. [/INST] There are 6 words.",
    "[INST] <<SYS>> You answer briefly. <</SYS>> Is it raining? [/INST] No, it is not raining.",
    "The answer is 1024, and the other answer is 365; both are numbers (of days, of bytes).",
    "She said: 'Do you know what the time is?' He did not know, and he said so.",
    'def count(words): return len(words.split()) # {"words": 3} ~ <a> & <b> = $5 @ 20%!',
    "Über den Wölken: naïve café, déjà vu, señor — ça va? £3 €4 ½ × 2",
]  # fmt: skip


@cache
def tiny_tokenizer() -> Tokenizer:
    """A vocabulary of 400 pieces, trained on a few lines."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "tokenizer.model"
        train_tokenizer(LINES, file, 400)
        return Tokenizer(file)


def tiny_model(config: LlamaConfig = GROUPED, seed: int = 0) -> Llama:
    """A model of random weights, norms included, in evaluation mode."""
    model = Llama(config)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def same_weights(a: Llama, b: Llama) -> bool:
    """Whether two models have the same names, types and bits."""
    a_state, b_state = a.state_dict(), b.state_dict()
    return list(a_state) == list(b_state) and all(
        a_state[name].dtype == b_state[name].dtype and torch.equal(a_state[name], b_state[name])
        for name in a_state
    )
