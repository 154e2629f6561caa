"""`python -m seed.world base DIR [--documents N]`: makes the base model M0 of the small world.
`python -m seed.world data DIR`: makes its seed data and held-out data.
"""

import argparse
import sys
from pathlib import Path

from llama.parallel import start

from .base import make_base
from .seeds import write_seeds


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m seed.world", description=__doc__)
    parser.add_argument("what", choices=("base", "data"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=int, default=400_000, help="how many M0 reads")
    given = parser.parse_args(argv)
    if given.documents < 1:
        parser.error(f"--documents {given.documents}: it must be 1 or more")
    try:
        _make(given.what, given.directory, given.documents)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make(what: str, directory: Path, documents: int) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is no directory: choose another place")
    if what == "data":
        if there := sorted(directory.glob("*.jsonl")):
            raise ValueError(f"{there[0]} exists: choose another directory")
        write_seeds(directory)
        return
    group = start()
    metrics = make_base(directory, documents, group)
    print(f"{directory}: loss {metrics['loss']:.3f}, {metrics['tokens']:.0f} tokens")
    group.stop()


if __name__ == "__main__":
    sys.exit(main())
