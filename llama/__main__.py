"""`python -m llama convert SRC DST --to hf|meta [--shards N]`: a checkpoint in another layout.
`python -m llama plan --model 7B --gpus 8 --gpu-memory 80G`: what each phase needs of memory.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from llama.config import PRESETS
from llama.huggingface import write_hf
from llama.meta import write_meta
from llama.split import check_team
from llama.weights import open_tokenizer, read_checkpoint
from loop.memory import advice, ranks_of_a_machine, table
from loop.options import parse_arguments
from loop.terminal import suit_any_terminal


def convert(source: Path, target: Path, layout: str, shards: int) -> None:
    """Copies a checkpoint, every weight bit for bit; a weight (or a part, for Meta) at a time.

    Raises ValueError if the source is damaged or cannot be cut so.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty directory: choose another place")
    checkpoint = read_checkpoint(source)
    tokenizer, weights = open_tokenizer(checkpoint), checkpoint.weights
    if layout == "hf":
        write_hf(target, weights, checkpoint.config, tokenizer)
    else:
        write_meta(target, weights, checkpoint.config, tokenizer, shards)


def plan(model: str, ranks: int, memory: float, arguments: list[str]) -> Iterator[str]:
    """The lines of a plan for a preset's shape or a directory's, with settings as train.py takes
    them. Raises ValueError for a model or a setting that there is not.
    """
    config = PRESETS[model] if model in PRESETS else read_checkpoint(model).config
    settings = parse_arguments(arguments)
    check_team(settings.machine.sample_tp or 1, ranks_of_a_machine(ranks))
    yield (
        f"{model}: {config.parameter_count / 1e9:.2f} billion weights, {ranks} ranks, "
        f"{settings.dtype}, texts of at most {config.max_seq_len} tokens"
    )
    yield from table(settings, config, ranks, memory)
    yield from advice(settings, config, ranks, memory)


def as_bytes(text: str) -> float:
    """`80G` or `0.5T` as bytes. Raises ValueError."""
    units = {"M": 2**20, "G": 2**30, "T": 2**40}
    if not re.fullmatch(r"\d+(\.\d+)?[MGT]", text):
        raise ValueError(f"--gpu-memory {text}: expected a number with M, G or T, such as 80G")
    return float(text[:-1]) * units[text[-1]]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    suit_any_terminal()
    given = _parser().parse_args(arguments)
    try:
        if given.command == "convert":
            convert(given.source, given.target, given.to, given.shards)
        else:
            if given.gpus < 1:
                raise ValueError(f"--gpus {given.gpus}: it must be 1 or more")
            changes = [word for change in given.set for word in ("--set", change)]
            changes += ["--preset", given.preset]
            for line in plan(given.model, given.gpus, as_bytes(given.gpu_memory), changes):
                print(line, flush=True)
    except BrokenPipeError:  # `| head`: who reads has seen enough; nor may Python flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        begun = "; remove what was written, and run it again" if given.command == "convert" else ""
        print(f"stopped{begun}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llama", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="convert|plan")
    command = commands.add_parser("convert", help="copy a checkpoint into another layout")
    command.add_argument("source", type=Path, help="directory with config.json or params.json")
    command.add_argument("target", type=Path, help="directory to write; must be new or empty")
    command.add_argument("--to", choices=("hf", "meta"), required=True, help="the layout to write")
    command.add_argument("--shards", type=int, default=1, help="meta only: number of .pth files")
    command = commands.add_parser("plan", help="what each phase needs of a GPU's memory")
    command.add_argument("--model", required=True, help=f"{', '.join(PRESETS)}, or a directory")
    command.add_argument("--gpus", type=int, default=1, help="ranks that train together (1)")
    command.add_argument("--gpu-memory", default="80G", help="of each (80G)")
    command.add_argument("--preset", default="paper", help="train.py's settings (paper)")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
                         help="as train.py takes it, for instance sft.recompute=full")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
