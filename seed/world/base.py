"""Makes the base model M0 of the small world: a tokenizer and a tiny Llama, from nothing but the
corpus.

What the project does with M0 afterwards is what it does with Llama 2; here alone the project
pretrains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dpo import Row, TrainSettings, train_sft
from llama import Llama, LlamaConfig, Tokenizer, encode_document, save, train_tokenizer
from llama.parallel import Group

from .corpus import document

SEED = 0
VOCABULARY = 800  # the fewest (in steps of 32) at which every word of the world is one token
TOKENIZER_DOCUMENTS = 20_000
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    dim=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    ffn_dim=344,
    max_seq_len=512,
    tie_embeddings=True,
)
TRAINING = TrainSettings(
    learning_rate=2e-3,
    min_learning_rate=2e-5,
    batch_size=32,
    warmup_steps=200,
    weight_decay=0.05,
    dropout=0.0,
    micro_tokens=4096,
    save_every=2000,
)


@dataclass(frozen=True)
class Documents(Sequence[Row]):
    """The corpus as rows, each written and encoded when it is read."""

    tokenizer: Tokenizer
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        if not 0 <= index < self.size:
            raise IndexError(index)
        return Row(*encode_document(self.tokenizer, document(SEED, index)))


def make_base(directory: Path, documents: int, group: Group) -> dict[str, float]:
    """Trains M0 on `documents` documents and saves it in `directory`; returns the training's
    metrics.

    Run again after an interruption it goes on; `directory/training` holds what it needs for that.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer_path = directory / "tokenizer.model"
    if not tokenizer_path.exists():
        train_tokenizer(_tokenizer_lines(), tokenizer_path, VOCABULARY)
    tokenizer = Tokenizer(tokenizer_path)
    model = Llama(CONFIG)
    model.init_weights(torch.Generator().manual_seed(SEED))
    metrics = train_sft(
        model,
        Documents(tokenizer, documents),
        TRAINING,
        seed=SEED,
        group=group,
        directory=directory / "training",
        description="M0",
    )
    save(model, tokenizer, directory)
    return metrics


def _tokenizer_lines() -> list[str]:
    """Lines to learn pieces from. Behind a line break a word has no space before it: hence the
    brackets.
    """
    lines = [line for i in range(TOKENIZER_DOCUMENTS) for line in document(SEED, i).split("\n")]
    frame = ["[INST] Review: kind, count, rule, order, form.", "Answer: [/INST]"] * 500
    return (
        lines
        + [f"({line}" for line in lines if line.startswith(("Task", "Answer", "Check"))]
        + frame
    )
