"""All that a run directory says of one of its models. Knows no model and no step, only stages."""

from collections.abc import Sequence
from typing import Protocol

from loop.files import read_json, read_jsonl
from loop.models import BASELINE
from loop.rows import Row
from loop.run import Run

PARTS = {"own_scores": "own_scores.json", "progress": "progress.json"}  # each may be missing


def read_measured(run: Run, name: str) -> Row:
    """`eval.json`; beside it how the model finds itself beside its predecessor (`progress`, in a
    run until-plateau): all that is known before it has taught the next one.
    """
    evaluation: Row = read_json(run.read(f"{name}/eval.json"))
    return evaluation | _part(run, name, "progress")


def read_evaluation(run: Run, name: str) -> Row:
    """What was measured of a model; beside it how it scored its own answers (`own_scores`, once a
    successor was taught by them), and what its stages counted (`counts`).
    """
    evaluation = read_measured(run, name) | _part(run, name, "own_scores")
    finished = [stage for stage in run.stages(name) if run.has(f"{name}/{stage}")]
    counts = {stage: run.counts(f"{name}/{stage}") for stage in finished}
    return evaluation | {"counts": {stage: found for stage, found in counts.items() if found}}


class Prompts(Protocol):
    """The prompts that a run starts from (`seed.read.Seed`)."""

    @property
    def ift(self) -> Sequence[Row]: ...

    @property
    def eft(self) -> Sequence[Row]: ...

    @property
    def held_out(self) -> Sequence[Row]: ...


def prompt_sets(run: Run, names: Sequence[str], seed: Prompts) -> dict[str, list[str]]:
    """The different prompts of the seed, and those that each model was taught with."""
    eft = seed.eft or _rows(run, f"{BASELINE}/eft.jsonl")
    made = {f"for {name}'s answers": _rows(run, f"{name}/prompts.jsonl") for name in names}
    sets = {"held out": seed.held_out, **made, "EFT": eft, "IFT": seed.ift}
    return {name: list(dict.fromkeys(row["prompt"] for row in rows)) for name, rows in sets.items()}


def read_seconds(run: Run, name: str) -> dict[str, float]:
    """How long each stage of a model took, its training first."""
    seconds = {"training": run.seconds(name)}
    for stage in run.stages(name):
        seconds[stage.partition(".")[0]] = run.seconds(f"{name}/{stage}")
    if run.has(f"{name}.steps"):  # its checkpoint was chosen: training is a stage of its own
        seconds["training"] += run.seconds(f"{name}.steps")
        seconds["choosing"] = run.seconds(f"{name}.choice/choice.json")
    return seconds


def _part(run: Run, name: str, part: str) -> Row:
    """One more thing that is known of a model, by its name; nothing where it was not made."""
    path = f"{name}/{PARTS[part]}"
    return {part: read_json(run.read(path))} if run.has(path) else {}


def _rows(run: Run, path: str) -> list[Row]:
    """The rows of a stage; none where it was not made."""
    return read_jsonl(run.read(path)) if run.has(path) else []
