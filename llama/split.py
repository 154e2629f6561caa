"""Which part of each weight a rank holds where several hold one model together, to sample from it.

```
  4 heads on 2 ranks        wq wk wv   rows of heads 0 1 | rows of heads 2 3
                            wo         columns of 0 1    | columns of 2 3      outputs are added
  SwiGLU                    w1 w3      rows, first half  | second half
                            w2         columns           | columns             outputs are added
  vocabulary                embeddings, output: rows     | rows                outputs: side by side
  key-value heads           fewer than ranks: neighbours hold the same one
```
Arithmetic alone: knows no tensor, no file and no process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llama.config import LlamaConfig
from llama.stored import ALL, Part


@dataclass(frozen=True)
class Split:
    """One rank's part of a model that `size` ranks hold; rank 0's is the largest.

    Raises ValueError for a number of ranks to which the heads cannot be dealt.
    """

    whole: LlamaConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        if not _divides(self.whole, self.size):
            among = ", ".join(map(str, sizes(self.whole, self.whole.n_heads)))
            raise ValueError(
                f"{self.whole.n_heads} heads and {self.whole.n_kv_heads} key-value heads cannot be "
                f"dealt to {self.size} ranks: --sample-tp (machine.sample_tp) can be {among}"
            )

    @property
    def config(self) -> LlamaConfig:
        """What rotation and cache see: this rank's heads, and `dim` as wide as these."""
        return replace(
            self.whole,
            dim=self.whole.dim // self.size,
            n_heads=self.whole.n_heads // self.size,
            n_kv_heads=self.kv_heads.stop - self.kv_heads.start,
        )

    @property
    def kv_heads(self) -> slice:
        """Those that this rank's query heads read."""
        heads = self.whole.n_kv_heads
        first = self.rank * heads // self.size
        return slice(first, first + max(1, heads // self.size))

    @property
    def words(self) -> slice:
        """Its rows of the vocabulary: `most_words`, and where the vocabulary ends fewer."""
        return _share(self.whole.vocab_size, self.rank, self.size)

    @property
    def most_words(self) -> int:
        """Rows of the vocabulary that a rank holds at most."""
        return -(-self.whole.vocab_size // self.size)

    def part(self, name: str) -> Part:
        """Of the weight of that name, as `Weights.read` takes it."""
        width = self.whole.head_dim
        each = self.whole.n_heads // self.size * width
        heads = slice(self.rank * each, (self.rank + 1) * each)
        keys = slice(self.kv_heads.start * width, self.kv_heads.stop * width)
        inner = _share(self.whole.ffn_dim, self.rank, self.size)
        parts: dict[str, Part] = {
            "wq": (heads,),
            "wk": (keys,),
            "wv": (keys,),
            "wo": (ALL, heads),
            "w1": (inner,),
            "w3": (inner,),
            "w2": (ALL, inner),
            "tok_embeddings": (self.words,),
            "output": (self.words,),
        }
        return parts.get(name.split(".")[-2], ())  # norms are in every rank's hands


def sizes(config: LlamaConfig, ranks: int) -> list[int]:
    """Numbers of ranks that can hold the model together, of a machine with so many."""
    return [n for n in range(1, ranks + 1) if ranks % n == 0 and _divides(config, n)]


def check_team(size: int, ranks: int) -> None:
    """Raises ValueError for teams into which a machine's ranks cannot be dealt.

    No team lies on two machines: what its ranks tell each other, several times a layer and token,
    is no matter for a network.
    """
    if size < 1 or ranks % size:
        raise ValueError(
            f"--sample-tp (machine.sample_tp) is {size}, and a machine's {ranks} ranks cannot be "
            f"dealt into teams of {size}: take a divisor, or start other ranks on each machine"
        )


def parameter_count(config: LlamaConfig, size: int) -> int:
    """Weights in the hands of rank 0."""
    return sum(_counts(Split(config, 0, size)))


def _counts(split: Split) -> Iterator[int]:
    whole, own = split.whole, split.config
    inner = _share(whole.ffn_dim, 0, split.size).stop
    attention = 2 * own.head_dim * (own.n_heads + own.n_kv_heads)
    yield whole.n_layers * whole.dim * (attention + 3 * inner + 2)
    yield whole.dim * (1 + split.most_words * (1 if whole.tie_embeddings else 2))


def _divides(config: LlamaConfig, size: int) -> bool:
    heads = config.n_kv_heads
    if size < 1 or config.n_heads % size or (heads % size and size % heads):
        return False
    return all(_share(n, size - 1, size).stop == n > _share(n, size - 1, size).start
               for n in (config.ffn_dim, config.vocab_size))  # fmt: skip


def _share(count: int, rank: int, size: int) -> slice:
    """Equally many rows a rank, the last one's perhaps fewer."""
    each = -(-count // size)
    return slice(min(rank * each, count), min((rank + 1) * each, count))
