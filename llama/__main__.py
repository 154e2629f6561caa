"""`python -m llama convert SRC DST --to hf|meta [--shards N]`: a checkpoint in another layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llama.huggingface import write_hf
from llama.meta import write_meta
from llama.weights import open_tokenizer, read_checkpoint


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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llama", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="convert")
    command = commands.add_parser("convert", help="copy a checkpoint into another layout")
    command.add_argument("source", type=Path, help="directory with config.json or params.json")
    command.add_argument("target", type=Path, help="directory to write; must be new or empty")
    command.add_argument("--to", choices=("hf", "meta"), required=True, help="the layout to write")
    command.add_argument("--shards", type=int, default=1, help="meta only: number of .pth files")
    given = parser.parse_args(arguments)
    try:
        convert(given.source, given.target, given.to, given.shards)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
