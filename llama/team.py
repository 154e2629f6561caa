"""Several ranks that sample from one model together, for it is too large for one of them.

```
  4 ranks, 2 of them a team    rank 0 ╮ team 0: a replica     requests 0 2 4 …
                               rank 1 ╯
                               rank 2 ╮ team 1: a replica     requests 1 3 5 …
                               rank 3 ╯
```
The model itself (`Llama`) knows nothing of it: a rank's matrices are smaller (`split.py`), and
where a rank has but a part of a sum or of the logits, modules put in their place ask the others.
What a team does, every rank does alike: logits come to all of them as the same bits, so all draw
the same token, and no token is ever sent. Knows no text and no training.
"""

# B rows, C width, V vocabulary, P its part, R ranks of a team

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llama.config import LlamaConfig
from llama.model import Llama
from llama.parallel import Group
from llama.product import Linear
from llama.split import Split, check_team

Row = TypeVar("Row")


@dataclass(frozen=True)
class Team:
    """The ranks with which this one holds a replica: itself alone, or `size` neighbours.

    For work that is dealt out, the teams of a group are what its ranks are without teams. All ranks
    of the team are to call every method alike; all of the group, those that gather.
    """

    group: Group
    size: int = 1
    ranks: dist.ProcessGroup | None = None  # None: alone

    @property
    def rank(self) -> int:
        """This one's place in the team."""
        return self.group.rank % self.size

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.group.is_main

    @property
    def world_size(self) -> int:
        """Ranks of the whole group."""
        return self.group.world_size

    def slice(self, rows: Sequence[Row]) -> list[Row]:
        """This team's part of the rows. `gather_rows(slice(rows)) == rows`."""
        teams = self.world_size // self.size
        return list(rows[self.group.rank // self.size :: teams])

    def gather_rows(self, rows: Sequence[Row]) -> list[Row]:
        """All teams' rows, on all ranks, in turns."""
        return self.group.gather_rows(rows if self.rank == 0 else ())

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers, not of this team's alone."""
        return min(self.group.gather_rows([number]))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the team's ranks, in x itself."""
        if self.ranks is not None:
            dist.all_reduce(x, group=self.ranks)
        return x

    def side_by_side(self, x_BP: Tensor) -> Tensor:
        """All ranks' x one beside the other, the same bits on each of them."""
        if self.ranks is None:
            return x_BP
        x_RBP = x_BP.new_empty((self.size, *x_BP.shape))
        dist.all_gather(list(x_RBP.unbind()), x_BP.contiguous(), group=self.ranks)
        return x_RBP.movedim(0, -2).flatten(-2)


@cache  # each has communicators of its own
def join(group: Group, size: int) -> Team:
    """The team of this rank, of so many; to be called by all ranks of the group.

    Raises ValueError for a size that does not divide the ranks of a machine.
    """
    check_team(size, group.machine_ranks)
    if size == 1:
        return Team(group)
    limit = timedelta(seconds=group.timeout_s)
    ranks, _ = dist.new_subgroups(size, timeout=limit)
    return Team(group, size, ranks)


class TeamLlama(Llama):
    """A rank's part of a Llama, for sampling. Its `config` is what the cache sees: a few heads."""

    def __init__(self, config: LlamaConfig, team: Team) -> None:
        super().__init__(config)
        self.team, self.split = team, Split(config, team.rank, team.size)
        for name, linear in list(self.named_modules()):
            if isinstance(linear, nn.Linear):
                self.set_submodule(name, _part(linear, self.split.part(f"{name}.weight"), team))
        self.tok_embeddings = TeamEmbedding(self.split.words, config.dim, team)
        self.config = self.split.config
        self.requires_grad_(False)  # a sum over ranks has no derivative here

    def project(self, hidden_C: Tensor) -> Tensor:
        """Logits [..., V], of all words on all ranks."""
        logits_P = super().project(hidden_C)
        missing = self.split.most_words - logits_P.shape[-1]  # where the vocabulary ends
        logits_V = self.team.side_by_side(F.pad(logits_P, (0, missing)) if missing else logits_P)
        return logits_V[..., : self.config.vocab_size]


class TeamEmbedding(nn.Embedding):
    """Looks up the words that are in this rank's hands; the others give the rest."""

    def __init__(self, words: slice, dim: int, team: Team) -> None:
        super().__init__(words.stop - words.start, dim)
        self.first, self.team = words.start, team

    def forward(self, input: Tensor) -> Tensor:
        place = input - self.first
        elsewhere = (place < 0) | (place >= self.num_embeddings)
        x_C = super().forward(place.masked_fill(elsewhere, 0))
        return self.team.sum(x_C.masked_fill(elsewhere[..., None], 0.0))


class SummedLinear(Linear):
    """A matrix of which each rank has some columns: the products are parts of a sum."""

    team: Team

    def forward(self, input: Tensor) -> Tensor:
        return self.team.sum(super().forward(input))


def _part(linear: nn.Linear, part: tuple[slice, ...], team: Team) -> nn.Linear:
    """A matrix for that part, without its weights."""
    shape = zip((linear.out_features, linear.in_features), (*part, slice(None), slice(None)))
    rows, columns = (len(range(size)[cut]) for size, cut in shape)
    if columns == linear.in_features:
        return Linear(columns, rows)
    summed = SummedLinear(columns, rows)
    summed.team = team
    return summed
