"""DPO: our trainer against TRL's DPOTrainer, on the same weights, pairs, steps and optimizer.

Timed are the training steps alone: both have the reference's log-probabilities by then. Both
compute in fp32 without dropout. Of what TRL does by default, activation checkpointing, logging and
saving are off, for they would only slow it. Its batches are padded, its forward passes as large as
suits it best, with accumulation up to the same step.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import floor
from bench.race import Race, Run, race
from bench.shapes import CONTROL_IDS, EOS, TINY, pairs, random_weights
from bench.twin import transformers_twin
from dpo import Pair, TrainSettings, train_dpo
from dpo.descent import BETAS
from llama import Llama, LlamaConfig
from llama.parallel import current

BATCH = 16  # pairs in a step
RATE = 1e-4
NAMES = ["<unk>", "<s>", "</s>"]


def dpo_race(
    config: LlamaConfig, count: int, batch_sizes: Sequence[int], rounds: int, seed: int
) -> tuple[Race, int]:
    """The race, and an epoch's operations; batch_sizes: pairs in the opponent's forward pass."""
    model, data = random_weights(Llama(config), seed), pairs(count, seed)
    theirs = {
        f"{size} pairs a pass": partial(run_theirs, model, data, size, seed) for size in batch_sizes
    }
    ours = partial(run_ours, model, data, seed)
    return race(ours, theirs, rounds), floor.preferences(config, data)


def run_ours(model: Llama, data: Sequence[Pair], seed: int) -> Run:
    """An epoch of our trainer, on a copy of the weights."""
    return Run(len(data), train_ours(deepcopy(model), data, 1, seed)["seconds"])


def run_theirs(model: Llama, data: Sequence[Pair], size: int, seed: int) -> Run:
    """An epoch of TRL's, on a copy of the weights."""
    trainer = train_theirs(transformers_twin(model), data, size, 1, seed)
    return Run(len(data), trainer.state.log_history[-1]["train_runtime"])


def train_ours(
    model: Llama,
    data: Sequence[Pair],
    epochs: int,
    seed: int,
    directory: Path | None = None,
    processes: int | None = None,
    **more: Any,
) -> dict[str, float]:
    """Trains the model in place; returns the trainer's metrics. more: `TrainSettings`."""
    settings = TrainSettings(RATE, epochs=epochs, batch_size=BATCH, dropout=0.0, **more)
    how = {"directory": directory, "processes": processes}
    return train_dpo(model, data, settings, seed=seed, group=current(), **how)  # type: ignore[arg-type]


def train_theirs(
    twin: Any,
    data: Sequence[Pair],
    size: int,
    epochs: int,
    seed: int,
    logging: str = "no",
    checkpointing: bool = False,
) -> Any:
    """Trains the model in place, `size` pairs a forward pass; returns the trainer, with its log.

    checkpointing: of activations, which are then computed again in the backward pass.
    """
    trl, transformers = import_module("trl"), import_module("transformers")
    datasets = import_module("datasets")
    datasets.disable_progress_bars()
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that trl itself uses
        settings = trl.DPOConfig(
            directory,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=BATCH // size,
            num_train_epochs=epochs,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_length=None,
            precompute_ref_log_probs=True,
            gradient_checkpointing=checkpointing,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=seed,
            logging_strategy=logging,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        rows = datasets.Dataset.from_list([_as_text(pair) for pair in data])
        words = _tokenizer()
        trainer = trl.DPOTrainer(twin, args=settings, train_dataset=rows, processing_class=words)
        trainer.remove_callback(transformers.PrinterCallback)
        _check(trainer.train_dataset, data)
        trainer.train()
    return trainer


def _tokenizer() -> Any:
    """Reads "t17 t4" as [17, 4], for TRL takes text and makes the tokens itself."""
    tokenizers, transformers = import_module("tokenizers"), import_module("transformers")
    vocabulary = {_word(i): i for i in range(TINY.vocab_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=NAMES[0]))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=NAMES[0], eos_token=NAMES[EOS], pad_token=NAMES[0]
    )


def _as_text(pair: Pair) -> dict[str, str]:
    P = pair.chosen.is_response.index(True)
    parts = pair.chosen.ids[:P], pair.chosen.ids[P:], pair.rejected.ids[P:]
    texts = [" ".join(map(_word, ids)) for ids in parts]
    return {"prompt": texts[0], "chosen": f" {texts[1]}", "rejected": f" {texts[2]}"}


def _word(i: int) -> str:
    return NAMES[i] if i < CONTROL_IDS else f"t{i}"


def _check(dataset: Any, data: Sequence[Pair]) -> None:
    """Whether TRL trains on the same tokens as we do."""
    for row, pair in zip(dataset, data, strict=True):
        assert row["prompt_ids"] + row["chosen_ids"] == pair.chosen.ids, row
        assert row["prompt_ids"] + row["rejected_ids"] == pair.rejected.ids, row
        assert pair.chosen.is_response.index(True) == len(row["prompt_ids"]), row
