"""The keys and values of a GPU's samples: one piece of memory, taken once, in which nothing moves.

```
  | shared | prompt a | prompt b |      free      | sample b.0 | sample a.1 | sample a.0 | spare
    once     exact lengths, from below              from above, each as long as it may get
```
Lanes are the samples of a step, side by side; those of one prompt are neighbours, so the prompt is
read once for all of them. Who sits in which lane is a matter of small tensors of numbers: samples
come and go without a copy of what they remember. Knows no weights, no text and no sampling.
"""

# A places, C tokens that all prompts begin with, N tokens read, B lanes, I prompts
# H query heads, G key-value heads, D head width, Y layers

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

import torch
from torch import Tensor

from llama.config import LlamaConfig
from llama.varlen import Spans, attend, has_kernels, merge


class Ranges:
    """Which of `size` places are free; takes ranges from below or from above, first fit."""

    def __init__(self, size: int) -> None:
        self.free = [(0, size)] if size else []  # start and end, in order, none touching the next

    @property
    def left(self) -> int:
        """Free places."""
        return sum(end - start for start, end in self.free)

    def take(self, count: int, from_above: bool = False) -> int | None:
        """The start of a range of so many places, now taken; None where none is long enough."""
        order = range(len(self.free))
        for i in reversed(order) if from_above else order:
            start, end = self.free[i]
            if end - start >= count:
                taken = end - count if from_above else start
                rest = (start, taken) if from_above else (taken + count, end)
                self.free[i : i + 1] = [rest] if rest[0] < rest[1] else []
                return taken
        return None

    def give(self, start: int, count: int) -> None:
        """Frees a range again."""
        insort(self.free, (start, start + count))
        whole: list[tuple[int, int]] = []
        for first, end in self.free:
            if whole and whole[-1][1] == first:
                first = whole.pop()[0]
            whole.append((first, end))
        self.free = whole


class Arena:
    """Memory for the keys and values of `size` tokens, and one spare place for idle lanes."""

    def __init__(
        self, config: LlamaConfig, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.n_layers, size + 1, config.n_kv_heads, config.head_dim)
        self.k_YAGD = torch.empty(shape, dtype=dtype, device=device)
        self.v_YAGD = torch.empty(shape, dtype=dtype, device=device)
        self.k_YAGD[:, size], self.v_YAGD[:, size] = 0, 0
        self.size, self.spare = size, size
        self.ranges = Ranges(size)
        self.shared = 0  # tokens that all prompts begin with; they lie at place 0
        self._everyone: dict[int, Spans] = {}  # kept, for CUDA graphs go on reading them

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.k_YAGD.device

    @property
    def bytes_held(self) -> int:
        """All that it takes, from the beginning to the end."""
        return self.k_YAGD.nbytes + self.v_YAGD.nbytes

    def keep(self, layer: int, place_N: Tensor, k_NGD: Tensor, v_NGD: Tensor) -> None:
        """Puts new keys and values of a layer in their places."""
        k_AGD, v_AGD = self.k_YAGD[layer], self.v_YAGD[layer]
        if has_kernels(k_AGD):
            from llama.decoding import keep

            keep(k_AGD, v_AGD, place_N, k_NGD, v_NGD)
        else:
            k_AGD.index_copy_(0, place_N, k_NGD)
            v_AGD.index_copy_(0, place_N, v_NGD)

    def everyone(self, queries: int) -> Spans | None:
        """So many queries over what all prompts begin with, if there is such."""
        if self.shared and queries not in self._everyone:
            numbers = [[0, queries], [0, 0], [self.shared, 0]]
            query_2, start_2, count_2 = torch.tensor(numbers, dtype=torch.int32, device=self.device)
            self._everyone[queries] = Spans(query_2, start_2, count_2[:1], queries, self.shared)
        return self._everyone.get(queries)


class PackedPrefill:
    """Reads prompts one after the other, without padding, and keeps their keys and values.

    ```
      shared x y     prompts a b c d e     a sees xy a · b sees xy ab · c sees xy abc
      documents          0 0 0 1 1         d sees xy d · e sees xy de
    ```
    """

    def __init__(self, arena: Arena, starts: Sequence[int], lengths: Sequence[int]) -> None:
        device = arena.device
        length_I = torch.tensor(lengths, device=device)
        first_I = length_I.cumsum(0) - length_I
        within_N = torch.arange(sum(lengths), device=device)
        within_N -= first_I.repeat_interleave(length_I)
        self.place_N = torch.tensor(starts, device=device).repeat_interleave(length_I) + within_N
        self.positions_BT = (arena.shared + within_N)[None]
        self.last_I = first_I + length_I - 1
        bound_I1 = torch.nn.functional.pad(length_I.cumsum(0), (1, 0)).int()
        start_I1 = torch.tensor([*starts, 0], dtype=torch.int32, device=device)
        longest = max(lengths)
        self.own = Spans(bound_I1, start_I1, length_I.int(), longest, longest)
        self.everyone = arena.everyone(sum(lengths))
        self.arena = arena

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        q_NHD, k_AGD, v_AGD = q_BTHD[0], self.arena.k_YAGD[layer], self.arena.v_YAGD[layer]
        self.arena.keep(layer, self.place_N, k_BTGD[0], v_BTGD[0])
        parts = [attend(q_NHD, k_AGD, v_AGD, self.own, causal=True)]
        if self.everyone:
            parts.append(attend(q_NHD, k_AGD, v_AGD, self.everyone))
        return merge(parts)[None]


class LaneDecode:
    """One token a lane: it sees what all prompts begin with, its prompt, and what it wrote.

    int64, and nothing that makes the host wait, for a CUDA graph is made of this.
    """

    def __init__(
        self,
        arena: Arena,
        start_B: Tensor,
        written_B: Tensor,
        position_B: Tensor,
        longest: int,
        prompts: Spans,
        everyone: Spans | None,
    ) -> None:
        """start_B: where its own range begins; written_B: tokens there already, fewer than
        `longest`; position_B: the new one's place in its text. prompts: the lanes over their
        prompts; everyone: the lanes over what all prompts begin with, if there is such.
        """
        self.arena, self.positions_BT = arena, position_B[:, None]
        self.place_B, B = start_B + written_B, len(start_B)
        bound_B1 = torch.arange(B + 1, dtype=torch.int32, device=start_B.device)
        start_B1 = torch.nn.functional.pad(start_B, (0, 1)).int()
        own = Spans(bound_B1, start_B1, (written_B + 1).int(), 1, longest)
        self.spans = [own, prompts, *([everyone] if everyone else [])]

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        k_AGD, v_AGD = self.arena.k_YAGD[layer], self.arena.v_YAGD[layer]
        self.arena.keep(layer, self.place_B, k_BTGD[:, 0], v_BTGD[:, 0])
        q_BHD = q_BTHD[:, 0].contiguous()
        return merge([attend(q_BHD, k_AGD, v_AGD, span) for span in self.spans])[:, None]
