"""`python -m controls [--out DIR] [--seeds N] [--results FILE] [--set …]`: the loop against its
controls, over several seeds; writes RESULTS.md. Running it again goes on.
"""

import argparse
import sys
from pathlib import Path

from controls.arms import ARMS
from controls.results import render_results
from llama.parallel import Group, start
from loop.files import read_json, write
from loop.models import Models
from loop.options import parse_arguments
from loop.rows import Row
from loop.run import Run
from loop.stop import stoppable
from seed.start import open_start


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m controls", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"), help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("RESULTS.md"), help="(%(default)s)")
    parser.add_argument("--preset", default="world", help="(%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(arguments)
    try:
        group = start()
        runs = [run_seed(given, seed, group) for seed in range(given.seeds)]
        if group.is_main:
            write(given.results, render_results(runs).encode())
            print(f"complete: {given.results}")
        group.stop()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_seed(given: argparse.Namespace, seed: int, group: Group) -> dict[str, list[Row]]:
    """All arms from one M1; returns the evaluations of each arm's models, M1 first."""
    flags = ["--preset", given.preset, "--seed", str(seed), "--run", str(given.out / f"seed{seed}")]
    for assignment in given.set:
        flags += ["--set", assignment]
    settings = parse_arguments(flags)
    start_of = open_start(settings.model, settings.seed_data)
    evaluations: dict[str, list[Row]] = {}
    opened = Run.open(settings.run, settings.identity(), group, inputs=start_of.inputs)
    with opened as run, stoppable(run.say, "stopped; the same command goes on"):
        for arm in ARMS:
            run.say(f"── seed {seed}: {arm.label}")
            loop = arm(run, settings, start_of, Models(run, settings, group))
            loop.train()
            evaluations[arm.label] = [
                read_json((loop.model(t) / "eval.json").read_bytes())
                for t in range(1, settings.iterations + 1)
            ]
    return evaluations


if __name__ == "__main__":
    sys.exit(main())
