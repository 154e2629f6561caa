"""A model to sample from, out of its files or out of the one that was trained: whole on every rank
or, where it is too large for one, on teams of ranks that hold it together. Knows no settings but
that one.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from llama import Llama, LlamaConfig, Tokenizer, load_split
from llama.parallel import Group, local_part
from llama.split import parameter_count
from llama.team import Team, join
from llama.weights import read_checkpoint, replicate
from loop.memory import OURS, least_memory, team_size

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
    team = _team(lambda: read_checkpoint(path).config, group, dtype, asked)
    model, tokenizer = load_split(path, team, dtype)
    return model, tokenizer, team


def replica_of(
    trained: Llama, group: Group, dtype: torch.dtype, asked: int | None = None
) -> tuple[Llama, Team] | None:
    """What `load_replica` would give of this model once it is saved, to the bit, without a file.

    None where there may be no room for both beside each other. For all ranks of the group.
    """
    team, memory = _team(lambda: trained.config, group, dtype, asked), least_memory(group)
    held = max(group.gather_rows([sum(local_part(w).nbytes for w in trained.parameters())]))
    wanted = parameter_count(trained.config, team.size) * dtype.itemsize
    if memory is None or held + wanted > OURS * memory:
        return None
    return replicate(trained, team, dtype), team


def _team(
    config: Callable[[], LlamaConfig], group: Group, dtype: torch.dtype, asked: int | None
) -> Team:
    size = asked or 1
    if asked is None and group.world_size > 1:
        size = team_size(config(), dtype.itemsize, group.world_size, least_memory(group), None)
    return join(group, size)
