"""What a run starts from: a base model, seed data, and, in the embedded world alone, a truth to be
measured against.

Only `train.py` and the like may import this: from here the oracle can be reached, and no step that
learns may.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from seed.read import Seed, read_held_out, read_seed

WORLD = Path(__file__).parent / "world"
Truth = Callable[[str, str], Mapping[str, bool] | None]


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    model: Path  # M0
    seed: Seed
    inputs: dict[str, Path]  # the files that make the run what it is
    kept_out: list[str]  # prompts that the loop must not train on, for it is measured on them
    truth: Truth | None  # the criteria that a response to a prompt meets; None where nobody knows


def open_start(model: str | None, seed_data: str | None) -> Start:
    """The user's model and data; the embedded world for what is not given.

    Raises ValueError for data that cannot be read.
    """
    from seed.world import oracle, tasks

    embedded = seed_data is None
    base = WORLD / "base" if model is None else Path(model)
    data = WORLD / "data" if seed_data is None else Path(seed_data)
    seed = read_seed(data)
    measured = [row["prompt"] for row in (*seed.held_out, *seed.ranked)]
    if embedded:  # there a task is known in all its wordings
        measured = [text for prompt in measured for text in tasks.all_wordings(prompt)]
        seed = replace(seed, validation=read_held_out(data / "dev_held_out.jsonl"))
    return Start(
        base, seed, {"model": base, "seed": data}, measured, oracle.truth if embedded else None
    )
