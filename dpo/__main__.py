"""`python -m dpo MODEL --pairs FILE --out DIR`: DPO alone; with `--sft FILE`: SFT alone.

Runs under torchrun too. The same command again goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch

from dpo import Pair, Row, Telemetry, TrainSettings, forget, train_dpo, train_sft
from dpo.checkpoint import FILES
from dpo.reference import FILE
from dpo.settings import LOSSES, MOMENT_TYPES, RECOMPUTE
from dpo.telemetry import PROFILE, TENSORBOARD
from llama import Llama, Tokenizer, encode_example, load_sharded, save
from llama.layout import SHARDS, describe
from llama.lora import TARGETS
from llama.parallel import Group, Layout, start
from loop import files, lock
from loop.terminal import suit_any_terminal
from loop.together import main_says
from seed.read import read_ift
from seed.rows import STRING, read_rows, refuse

# The paper's settings, where they are not TrainSettings' own
SFT_RATES = {"learning_rate": 5.5e-6, "min_learning_rate": 1.1e-6}
DPO_RATES = {"learning_rate": 1e-6, "min_learning_rate": 1e-7}
DPO_ALONE = ("loss", "beta", "flipped", "gamma", "nll_weight", "replay", "replay_weight")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    suit_any_terminal()
    given = vars(_parser().parse_args(arguments))
    group: Group | None = None
    try:
        group = start(layout=Layout(given["shard"], given["offload"]))
        _run(given, group)
    except (ValueError, OSError) as error:
        if group is None or group.speaks:
            where = f"rank {group.rank}: " if group and not group.is_main else ""
            print(f"error: {where}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last save", file=sys.stderr)
        return 130
    group.stop()
    return 0


def _run(given: dict[str, Any], group: Group) -> None:
    out: Path = given["out"]
    _check(given)
    _refuse_a_model(out)
    _refuse_what_is_not_ours(out)
    rates = SFT_RATES if given["sft"] else DPO_RATES
    chosen = {name: given[name] for name in _OPTIONS if given[name] is not None}
    if "lora_targets" in chosen:
        chosen["lora_targets"] = tuple(chosen["lora_targets"])
    settings = TrainSettings(**{**rates, **chosen})
    if bool(given["replay"]) != bool(settings.replay_weight):
        raise ValueError("--replay and --replay-weight go together: give both or neither")
    telemetry = Telemetry(given["profile"], given["tensorboard"])
    dtype = torch.bfloat16 if given["bfloat16"] else torch.float32
    model, tokenizer = load_sharded(given["model"], group, dtype, lora=settings.lora)
    if group.is_main:
        size = f"{settings.batch_size} {'rows' if given['sft'] else 'pairs'} a step"
        passes = f"passes of at most {settings.micro_tokens:,} tokens a rank"
        passes += f", adapters of rank {settings.lora_rank} learn" if settings.lora else ""
        print(f"{describe(group, model.config.parameter_count, dtype)}; {size}, {passes}")
    if given["sft"]:
        train = partial(train_sft, model, read_sft(given["sft"], model, tokenizer), settings)
    else:
        replay = read_sft(given["replay"], model, tokenizer) if given["replay"] else []
        pairs = read_pairs(given["pairs"], model, tokenizer)
        train = partial(train_dpo, model, pairs, settings, replay=replay)
    with _alone(out, group):
        train(seed=given["seed"], group=group, directory=out, telemetry=telemetry)
        save(model, tokenizer, out)
        forget(out, group)


def _check(given: dict[str, Any]) -> None:
    """Raises ValueError for a seed that there is not, and for what would have no effect."""
    if given["seed"] < 0:
        raise ValueError(f"--seed must be at least 0, found {given['seed']}")
    idle = [name for name in DPO_ALONE if given[name] is not None]
    if given["sft"] and idle:
        flag = f"--{idle[0].replace('_', '-')}"
        raise ValueError(f"{flag} means nothing with --sft; leave it out, or give --pairs")


@contextmanager
def _alone(out: Path, group: Group) -> Iterator[None]:
    """Inside, no other run trains into `out`. Raises ValueError, on all ranks, where one does."""

    def take() -> int:
        files.make_directory(out)
        return lock.take(out, "--out")

    held = main_says(group, take)
    try:
        main_says(group, lambda: _refuse_a_model(out))  # of a run that has ended meanwhile
        yield
        main_says(group, (out / lock.NAME).unlink)  # who still opens it finds a model there
    finally:
        if group.is_main:
            lock.release(held)


def _refuse_a_model(out: Path) -> None:
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already: choose another --out")


def _refuse_what_is_not_ours(out: Path) -> None:
    """A training that has not ended left its lock at least; it may lack what it is gone on from."""
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names and not names & {lock.NAME, FILE, *FILES}:
        raise ValueError(
            f"{out}: expected no directory, an empty one, or a training to go on with; "
            "choose another --out"
        )


def read_sft(path: Path, model: Llama, tokenizer: Tokenizer) -> list[Row]:
    """Rows `id, prompt, response` (and `system`), encoded. Raises ValueError with file and line."""
    return [
        _encoded(path, line, model, tokenizer, row, "response")
        for line, row in enumerate(read_ift(path), start=1)
    ]


def read_pairs(path: Path, model: Llama, tokenizer: Tokenizer) -> list[Pair]:
    """Rows `id, prompt, chosen, rejected` (and `system`), encoded.

    Raises ValueError with file and line, also where chosen and rejected are the same.
    """
    names = ("id", "prompt", "chosen", "rejected")
    pairs = []
    rows = read_rows(path, dict.fromkeys(names, STRING), {"system": STRING})
    for line, row in enumerate(rows, start=1):
        both = [
            _encoded(path, line, model, tokenizer, row, name) for name in ("chosen", "rejected")
        ]
        if both[0] == both[1]:
            refuse(path, line, "chosen and rejected are the same text", "remove the row")
        pairs.append(Pair(*both))
    return pairs


def _encoded(
    path: Path, line: int, model: Llama, tokenizer: Tokenizer, row: dict[str, Any], answer: str
) -> Row:
    ids, is_response = encode_example(tokenizer, row["prompt"], row[answer], row.get("system"))
    longest = model.config.max_seq_len
    if len(ids) > longest:
        complaint = f"prompt and {answer} are {len(ids)} tokens, the model reads at most {longest}"
        refuse(path, line, complaint, "shorten or remove the row")
    return Row(ids, is_response)


_HELP = {
    "learning_rate": "highest; default 5.5e-6 for SFT, 1e-6 for DPO",
    "min_learning_rate": "where the cosine ends; default 1.1e-6 for SFT, 1e-7 for DPO",
    "epochs": "times that each row is seen",
    "batch_size": "rows or pairs in a step, over all ranks",
    "warmup_steps": "steps in which the rate rises",
    "weight_decay": "on matrices",
    "clip": "largest norm of the gradient",
    "dropout": "in training",
    "micro_tokens": "in one forward pass; lower it where memory is short",
    "loss": f"DPO: one of {', '.join(LOSSES)} (docs/dpo.md)",
    "beta": "DPO: how dear it is to leave the reference",
    "flipped": "cdpo, robust: share of the pairs that may be the wrong way round",
    "gamma": "simpo: by how much the chosen reward must be ahead",
    "nll_weight": "DPO: weight of the chosen responses' loss per token",
    "replay_weight": "DPO: weight of the loss per token of --replay's rows",
    "max_steps": "stop after so many",
    "lora_rank": "of the adapters that learn in place of the weights; 0: none",
    "lora_alpha": "what adapters add is multiplied by this, over their rank",
    "save_every": "steps between two saves to go on from",
}
_CHOICES = {
    "recompute": (RECOMPUTE, "in the backward pass; ever slower, with ever less memory"),
    "moments": (MOMENT_TYPES, "what Adam keeps; bfloat16 saves 4 of a weight's 16 bytes"),
}
_OPTIONS = (*_HELP, *_CHOICES, "lora_targets", "compile")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dpo", description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint, in Hugging Face's layout or Meta's")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--pairs", type=Path, help="JSONL of id, prompt, chosen, rejected")
    data.add_argument("--sft", type=Path, help="JSONL of id, prompt, response")
    parser.add_argument(
        "--out", type=Path, required=True, help="where the model goes: a new directory"
    )
    parser.add_argument("--replay", type=Path, help="DPO: JSONL as for --sft, mixed into each step")
    parser.add_argument(
        "--compile", action="store_true", default=None, help="blocks by torch.compile"
    )
    parser.add_argument(
        "--shard", choices=SHARDS, default="all", help="one copy of the weights, or one a machine"
    )
    parser.add_argument(
        "--offload", action="store_true", help="weights and moments wait in the machine's memory"
    )
    for name, (choices, text) in _CHOICES.items():
        default = getattr(TrainSettings, name)
        parser.add_argument(f"--{name}", choices=choices, help=f"{text}; default {default}")
    parser.add_argument(
        "--lora-targets", nargs="+", help=f"matrices with adapters; default {' '.join(TARGETS)}"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compute in it; weights stay fp32")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of dropout")
    parser.add_argument("--profile", action="store_true", help=PROFILE)
    parser.add_argument("--tensorboard", action="store_true", help=TENSORBOARD)
    types = get_type_hints(TrainSettings)
    for name, text in _HELP.items():
        default = getattr(TrainSettings, name, None)
        text = text if default is None or "default" in text else f"{text}; default {default}"
        kind = types[name] if types[name] in (float, str) else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
