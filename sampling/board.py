"""One step of all lanes, sampling included, on tables that stay where they are: what a CUDA graph
is made of. Nothing in it makes the host wait.

Knows no prompts but as tables of places, and not whose a sample is.
"""

# B lanes in a step, V vocabulary, N tokens of the longest sample

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.arena import Arena, LaneDecode
from llama.model import Llama
from llama.varlen import Spans
from sampling.batch import Decoding
from sampling.sample import are_numbers, draw, probabilities, uniforms

FULL = 0.6  # of a step's lanes, at least, are in use: idle ones cost less than one more graph
NUMBERS = ("token", "start", "before", "stream", "count", "limit")  # of a lane


class Board:
    """The tables: a row a lane. A lane whose sample has ended goes on idle, and changes nothing.

    longest, most: tokens of the longest prompt, samples of the largest ask, of all that will come.
    """

    def __init__(
        self, model: Llama, decoding: Decoding, arena: Arena, slots: int, longest: int, most: int
    ) -> None:
        self.model, self.decoding, self.arena, self.slots = model, decoding, arena, slots
        self.longest, self.most = longest, most
        device, new = arena.device, decoding.max_new_tokens
        self.number = {
            name: torch.zeros(slots, dtype=torch.int64, device=device) for name in NUMBERS
        }
        self.done_B = torch.ones(slots, dtype=torch.bool, device=device)
        self.written_BN = torch.zeros(slots, new, dtype=torch.int64, device=device)
        self.logp_BN = torch.zeros(slots, new, device=device)  # written to if it is asked for
        self.watched_BNW = torch.zeros(slots, new, len(decoding.watch), device=device)
        self.damaged = torch.zeros((), dtype=torch.bool, device=device)
        self.stops_V = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
        self.stops_V[sorted(decoding.stop_ids)] = True
        # of each prompt: where its lanes begin, where it lies, how long it is
        self.bound_B1 = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.lies_B1 = torch.zeros_like(self.bound_B1)
        self.length_B = torch.zeros(slots, dtype=torch.int32, device=device)
        self.size = 0  # lanes of the last step
        self.graphs: dict[int, Callable[[], None]] = {}

    def seat(self, lanes: slice, numbers: dict[str, Tensor]) -> None:
        """New samples sit down in lanes; nothing is written yet."""
        for name, number_B in numbers.items():
            self.number[name][lanes] = number_B
        self.number["count"][lanes] = 0
        self.done_B[lanes] = False

    def keep(self, stay: Sequence[int]) -> None:
        """The lanes of these numbers close up; those behind them stand idle."""
        order, rest = torch.tensor(stay, dtype=torch.int64, device=self.arena.device), len(stay)
        for table in self._tables():
            table[:rest] = table[order]
        self.done_B[rest:] = True
        self.number["start"][rest:], self.number["count"][rest:] = self.arena.spare, 0

    def set_prompts(
        self, lanes: Sequence[int], places: Sequence[int], lengths: Sequence[int]
    ) -> None:
        """Of each prompt, in the order of its lanes: how many these are, where it lies, its length.

        Each idle lane has one of its own, of no length.
        """
        idle = [1] * (self.slots - len(lanes))
        bounds_B1 = torch.tensor([0, *lanes, *idle], dtype=torch.int32).cumsum(0)
        self.bound_B1.copy_(bounds_B1.clamp(max=self.slots))
        for table, numbers in ((self.lies_B1, places), (self.length_B, lengths)):
            of_I = torch.tensor(numbers, dtype=torch.int32)
            table.copy_(F.pad(of_I, (0, len(table) - len(of_I))))

    def _tables(self) -> list[Tensor]:
        """Those with a row a lane that a step writes to."""
        written = self.written_BN, self.logp_BN, self.watched_BNW
        return [*self.number.values(), self.done_B, *written]

    def run(self, lanes: int) -> None:
        """A step of at least so many lanes."""
        if not FULL * self.size <= lanes <= self.size:
            self.size = min(self.slots, -(-lanes // 32) * 32)
        if self.size not in self.graphs:
            self.graphs[self.size] = self._graph(self.size)
        self.graphs[self.size]()

    def _graph(self, size: int) -> Callable[[], None]:
        """The step as a CUDA graph; without CUDA, as it is."""
        everyone = self.arena.everyone(size)

        def step() -> None:
            self._write(size, everyone)

        if self.arena.device.type != "cuda":
            return step
        # The first run is not captured, for libraries make their workspaces then. What it writes
        # is undone, but for the keys and values: those the step proper writes again.
        tables = [*self._tables(), self.damaged]
        before = [table.clone() for table in tables]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            step()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # of this thread alone: NCCL's watchdog looks at its events meanwhile, from another
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        for table, was in zip(tables, before):
            table.copy_(was)
        return graph.replay

    def _write(self, size: int, everyone: Spans | None) -> None:
        """A token for each of the first lanes."""
        lanes = slice(0, size)
        behind_B = (self.number["count"][lanes] - 1).clamp(min=0)  # written, and read again
        prompts = Spans(
            self.bound_B1[: size + 1].clamp(max=size),
            self.lies_B1[: size + 1],
            self.length_B[:size],
            self.most,
            self.longest,
        )
        attend = LaneDecode(
            self.arena,
            self.number["start"][lanes],
            behind_B,
            self.number["before"][lanes] + behind_B,
            self.decoding.max_new_tokens,
            prompts,
            everyone,
        )
        self.draw(self.model(self.number["token"][lanes, None], attend)[:, 0], lanes)

    def draw(self, logits_BV: Tensor, lanes: slice) -> None:
        """Draws a token for each lane, and writes it where the lane's sample goes on."""
        how, count_B, live_B = self.decoding, self.number["count"][lanes], ~self.done_B[lanes]
        good_B = are_numbers(logits_BV)
        self.damaged |= (live_B & ~good_B).any()
        logits_BV = torch.where(good_B[:, None], logits_BV, 0.0)
        u_B = uniforms(self.number["stream"][lanes], count_B)
        token_B = draw(logits_BV, u_B, how.temperature, how.top_p)
        at_B1 = count_B.clamp(max=how.max_new_tokens - 1)[:, None]
        _set_where(live_B, self.written_BN[lanes], at_B1, token_B)
        if how.logps:
            logp_B1 = logits_BV.float().log_softmax(dim=-1).gather(1, token_B[:, None])
            _set_where(live_B, self.logp_BN[lanes], at_B1, logp_B1[:, 0])
        if how.watch:
            chance_BW = probabilities(logits_BV, how.watch)
            for place, chance_B in enumerate(chance_BW.T):
                _set_where(live_B, self.watched_BNW[lanes, :, place], at_B1, chance_B)
        self.number["token"][lanes] = torch.where(live_B, token_B, self.number["token"][lanes])
        count_B += live_B
        self.done_B[lanes] |= self.stops_V[token_B] | (count_B >= self.number["limit"][lanes])


def _set_where(live_B: Tensor, table_BN: Tensor, at_B1: Tensor, value_B: Tensor) -> None:
    """`table[b, at[b]] = value[b]` for the live ones."""
    was_B1 = table_BN.gather(1, at_B1)
    table_BN.scatter_(1, at_B1, torch.where(live_B[:, None], value_B[:, None], was_B1))
