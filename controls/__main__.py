"""`python -m controls [--out DIR] [--seeds N] [--only LABEL] [--results FILE] [--set …]`: the loop
against its controls and its ablations, over several seeds; writes RESULTS.md. Running it again goes
on.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from controls.ablations import ABLATIONS
from controls.arms import ARMS, Arm
from controls.results import T_975, render_ablations, render_results
from llama.parallel import Group, start
from loop.command import STOPPED, fitting_start
from loop.files import read_json, write
from loop.models import Models
from loop.options import parse_arguments
from loop.rows import Row
from loop.run import Run
from loop.settings import Settings
from loop.stop import stoppable
from loop.terminal import suit_any_terminal
from seed.start import Start, open_start

Begin = Callable[[Run, Settings, Start, Group], Arm]
ABLATION_SEEDS = 3  # the first of the seeds


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    suit_any_terminal()
    given = _parse(arguments)
    try:
        chosen = _chosen(given.only)
        group = start()
        runs = [run_seed(given, seed, group, chosen) for seed in range(given.seeds)]
        if group.is_main:
            target = given.results or (given.out / "RESULTS.md" if given.only else "RESULTS.md")
            write(Path(target), _rendered(runs, chosen).encode())
            print(f"complete: {target}")
        group.stop()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # between the runs
        print(STOPPED, file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m controls", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"), help="(%(default)s)")
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        choices=range(1, len(T_975) + 2),
        metavar="N",
        help=f"how many, 1 to {len(T_975) + 1} (%(default)s)",
    )
    labels = ", ".join(_begin())
    parser.add_argument(
        "--only", action="append", default=[], metavar="LABEL", help=f"beside the loop: {labels}"
    )
    parser.add_argument("--results", type=Path, help="(RESULTS.md; in --out for --only)")
    parser.add_argument("--preset", default="world", help="(%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(arguments)
    for assignment in given.set:
        if assignment.partition("=")[0] in ("seed", "run"):  # they would be all seeds' own
            parser.error(f"--set {assignment}: each seed has its own; choose --seeds and --out")
    return given


def _begin() -> dict[str, Begin]:
    """How each arm begins, by its label; the loop comes first, then the controls."""

    def arm_of(kind: type[Arm], run: Run, settings: Settings, given: Start, group: Group) -> Arm:
        return kind(run, settings, given, Models(run, settings, group))

    begin: dict[str, Begin] = {arm.label: partial(arm_of, arm) for arm in ARMS}
    return begin | {each.label: each.begin for each in ABLATIONS}


def _chosen(only: list[str]) -> dict[str, Begin]:
    """All arms, or the loop and those named. Raises ValueError for a name that there is not."""
    begin = _begin()
    if unknown := [label for label in only if label not in begin]:
        raise ValueError(f"--only {unknown[0]}: expected one of {', '.join(begin)}")
    return {label: how for label, how in begin.items() if not only or label in ("loop", *only)}


def run_seed(
    given: argparse.Namespace, seed: int, group: Group, chosen: Mapping[str, Begin]
) -> dict[str, list[Row]]:
    """The chosen arms from one M1; returns the evaluations of each arm's models, M1 first, each
    with the count of `pairs` that the model made.
    """
    flags = ["--preset", given.preset, "--seed", str(seed), "--run", str(given.out / f"seed{seed}")]
    for assignment in given.set:
        flags += ["--set", assignment]
    settings = parse_arguments(flags)
    start_of, inputs = fitting_start(open_start, settings)
    evaluations: dict[str, list[Row]] = {}
    opened = Run.open(settings.run, settings.identity(), group, inputs=inputs)
    with opened as run, stoppable(run.say, STOPPED):
        for label, begin in chosen.items():
            if seed >= ABLATION_SEEDS and label in {each.label for each in ABLATIONS}:
                continue
            run.say(f"── seed {seed}: {label}")
            arm = begin(run, settings, start_of, group)
            arm.train()
            evaluations[label] = [_result(arm, t) for t in range(1, settings.iterations + 1)]
    return evaluations


def _result(arm: Arm, t: int) -> Row:
    evaluation: Row = read_json((arm.model(t) / "eval.json").read_bytes())
    pairs = f"{arm.name(t)}/pairs.jsonl"
    known = arm.run.has(pairs)
    return evaluation | {"pairs": arm.run.counts(pairs)["pairs"] if known else None}


def _rendered(runs: list[dict[str, list[Row]]], chosen: Mapping[str, Begin]) -> str:
    """The controls' tables, over all seeds, and the ablations'."""
    ablations = [each.label for each in ABLATIONS if each.label in chosen]
    controls = [label for label in chosen if label not in ablations]
    parts = [render_results([{label: run[label] for label in controls} for run in runs])]
    if ablations:
        first = runs[:ABLATION_SEEDS]
        shown = ["loop", *ablations]
        parts.append(render_ablations([{label: run[label] for label in shown} for run in first]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
