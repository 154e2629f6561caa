"""Loads a model to sample from it: whole on every rank or, where it is too large for one, on teams
of ranks that hold it together. Knows no settings but that one.
"""

from pathlib import Path

import torch

from llama import Llama, Tokenizer, load_split
from llama.parallel import Group
from llama.team import Team, join
from llama.weights import read_checkpoint
from loop.memory import least_memory, team_size

SAMPLE_TP = (  # what the flag of that name says of itself, in every face
    "ranks of torchrun's that hold the model together to sample (one, or what memory asks for)"
)


def load_replica(
    path: str | Path, group: Group, dtype: torch.dtype, asked: int | None = None
) -> tuple[Llama, Tokenizer, Team]:
    """The model, its tokenizer, and the team with which this rank holds it: of so many ranks as are
    asked for, or as the memory at hand asks for. For all ranks of the group.

    Raises ValueError for a damaged checkpoint, and for a team that there cannot be.
    """
    size = asked or 1
    if asked is None and group.world_size > 1:
        config, memory = read_checkpoint(path).config, least_memory(group)
        size = team_size(config, dtype.itemsize, group.world_size, memory, None)
    team = join(group, size)
    model, tokenizer = load_split(path, team, dtype)
    return model, tokenizer, team
