"""`python -m seed.world base DIR [--documents N]`: makes the base model M0 of the small world.
`python -m seed.world data DIR`: makes its seed data and held-out data.
"""

import argparse
import sys
from pathlib import Path

from llama.parallel import start

from .base import make_base
from .seeds import write_seeds


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m seed.world", description=__doc__)
    parser.add_argument("what", choices=("base", "data"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=int, default=400_000, help="how many M0 reads")
    arguments = parser.parse_args(argv)
    if arguments.what == "data":
        write_seeds(arguments.directory)
        return
    group = start()
    metrics = make_base(arguments.directory, arguments.documents, group)
    print(f"{arguments.directory}: loss {metrics['loss']:.3f}, {metrics['tokens']:.0f} tokens")
    group.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
