"""The samples in progress on a GPU: as `batch.Batch`, but the host looks only every few steps.

```
  host    read       look       look · read        LOOK = 4 steps from one look to the next
  lane 0  a          a a a a    a a - -   d d d d  a ended after 7 tokens, and idled for two steps
  lane 1  b          b b b b    b b b b   b b b b
```
Then the ended ones are freed, the others close up, and new prompts are read. Knows no text, no
ranks and no queue. On a CPU it does the same without graphs, for the tests.
"""

# A asks, V vocabulary

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from llama.arena import Arena, PackedPrefill
from llama.model import Llama
from sampling.batch import Ask, Decoding, Owner, Sample
from sampling.board import Board
from sampling.sample import DAMAGED, streams

LOOK = 8  # steps between two looks of the host
PREFILL_TOKENS = 16384  # read at once


@dataclass(frozen=True)
class Prompt:
    """Where the keys and values of an ask's prompt lie."""

    start: int
    length: int


@dataclass(frozen=True)
class Seat:
    """A sample in a lane, and where its own keys and values lie, `limit` of them at most."""

    owner: Owner
    prompt: Prompt
    start: int
    limit: int


class Lanes:
    """Samples in progress. `seats[b]` sits in lane b; those of one prompt are neighbours."""

    def __init__(
        self,
        model: Llama,
        decoding: Decoding,
        seed: int,
        slots: int,
        room: float,
        asks: Sequence[Ask],
        shared: int,
    ) -> None:
        """room: tokens that the cache may hold; asks: all that will come, after as many tokens as
        are shared.
        """
        model.lay_together()
        weight = next(model.parameters())
        most = max(len(ask.samples) for ask in asks)
        longest = max(len(ask.prompt) for ask in asks)
        wanted = shared + sum(len(ask.prompt) + ask.limit * len(ask.samples) for ask in asks)
        self.model, self.decoding, self.seed, self.slots = model, decoding, seed, slots
        self.arena = Arena(model.config, int(min(room, wanted)), weight.dtype, weight.device)
        self.board = Board(model, decoding, self.arena, slots, longest, most)
        self.seats: list[Seat] = []
        self.tokens = 0  # written by now
        self._live = 0  # of them, by samples in progress

    @property
    def owners(self) -> list[Owner]:
        """Whose samples are in progress."""
        return [seat.owner for seat in self.seats]

    @property
    def bytes_held(self) -> int:
        """Memory of the keys and values, from the beginning to the end."""
        return self.arena.bytes_held

    def share(self, prefix: list[int]) -> None:
        """Reads what all prompts begin with. The asks that follow hold what comes after it."""
        place = self.arena.ranges.take(len(prefix))
        assert place == 0, "nothing is read before it"
        self._read_packed([prefix], [place])
        self.arena.shared = len(prefix)

    def take(self, waiting: deque[Ask]) -> list[Ask]:
        """Takes asks from the front of the queue for which there are lanes and room, if any."""
        asked: list[Ask] = []
        while waiting and len(self.seats) + len(waiting[0].samples) <= self.slots:
            if not (seats := self._seats(waiting[0])):
                break
            self.seats += seats
            asked.append(waiting.popleft())
        return asked

    def _seats(self, ask: Ask) -> list[Seat]:
        """Places for an ask's prompt and samples; none if there is no room for all of them."""
        ranges, taken = self.arena.ranges, list[tuple[int, int]]()
        for count in [len(ask.prompt), *([ask.limit] * len(ask.samples))]:
            # samples from above, all about equally long; prompts from below, shorter and shorter
            if (place := ranges.take(count, from_above=bool(taken))) is None:
                for start, length in taken:
                    ranges.give(start, length)
                return []
            taken.append((place, count))
        prompt = Prompt(*taken[0])
        return [Seat((ask.request, k), prompt, *own) for k, own in zip(ask.samples, taken[1:])]

    def read(self, asks: Sequence[Ask]) -> list[tuple[Owner, Sample]]:
        """Reads prompts that were taken, and writes the first token of each of their samples."""
        device, n = self.arena.device, [len(ask.samples) for ask in asks]
        new = slice(len(self.seats) - sum(n), len(self.seats))
        seats, n_A = self.seats[new], torch.tensor(n, device=device)
        key_B = torch.tensor([ask.key for ask in asks], device=device).repeat_interleave(n_A)
        numbers = [
            [seat.owner[1], seat.start, self.arena.shared + seat.prompt.length, seat.limit]
            for seat in seats
        ]
        sample_B, start_B, before_B, limit_B = torch.tensor(numbers, device=device).T
        stream_B = streams(self.seed, key_B, sample_B)
        self.board.seat(
            new, {"stream": stream_B, "start": start_B, "before": before_B, "limit": limit_B}
        )
        places = [prompt.start for prompt, _ in self._groups(seats)]
        logits_AV = self._read_packed([ask.prompt for ask in asks], places)
        self.board.draw(logits_AV.repeat_interleave(n_A, dim=0), new)
        return self._look()

    def _read_packed(self, prompts: Sequence[list[int]], places: Sequence[int]) -> Tensor:
        """Logits AV of what follows each prompt."""
        logits, first, held = [], 0, 0
        for number, prompt in enumerate(prompts):
            held += len(prompt)
            if held >= PREFILL_TOKENS or number + 1 == len(prompts):
                part, first, held = slice(first, number + 1), number + 1, 0
                logits.append(self._read_at_once(prompts[part], places[part]))
        return torch.cat(logits)

    def _read_at_once(self, prompts: Sequence[list[int]], places: Sequence[int]) -> Tensor:
        attend = PackedPrefill(self.arena, places, [len(prompt) for prompt in prompts])
        tokens = [[token for prompt in prompts for token in prompt]]
        tokens_1T = torch.tensor(tokens, device=self.arena.device)
        logits_AV: Tensor = self.model(tokens_1T, attend, wanted_N=attend.last_I)
        return logits_AV

    def step(self) -> list[tuple[Owner, Sample]]:
        """Writes some tokens to every sample. Returns those that ended, and frees what they had."""
        for _ in range(LOOK):
            self.board.run(len(self.seats))
        return self._look()

    def _look(self) -> list[tuple[Owner, Sample]]:
        """The host sees what was written: those that ended leave, the others close up."""
        board, lanes = self.board, len(self.seats)
        if board.damaged:
            raise ValueError(DAMAGED)
        counts = board.number["count"][:lanes].tolist()
        done = board.done_B[:lanes].tolist()
        ended = [
            (seat, self._sample(lane, counts[lane]))
            for lane, seat in enumerate(self.seats)
            if done[lane]
        ]
        self.tokens += sum(counts) - self._live
        stay = [lane for lane in range(lanes) if not done[lane]]
        self._live = sum(counts[lane] for lane in stay)
        self.seats = [self.seats[lane] for lane in stay]
        self._free([seat for seat, _ in ended])
        board.keep(stay)
        groups = self._groups(self.seats)
        board.set_prompts(
            [n for _, n in groups],
            [prompt.start for prompt, _ in groups],
            [prompt.length for prompt, _ in groups],
        )
        return [(seat.owner, sample) for seat, sample in ended]

    def _free(self, seats: Sequence[Seat]) -> None:
        """Gives back what these have left behind, and prompts that nobody needs any more."""
        needed = {seat.prompt for seat in self.seats}
        for prompt in {seat.prompt for seat in seats} - needed:
            self.arena.ranges.give(prompt.start, prompt.length)
        for seat in seats:
            self.arena.ranges.give(seat.start, seat.limit)

    def _groups(self, seats: Sequence[Seat]) -> list[tuple[Prompt, int]]:
        """The prompts in the order of their lanes, and how many these are."""
        return [(prompt, len(list(of))) for prompt, of in groupby(seat.prompt for seat in seats)]

    def _sample(self, lane: int, count: int) -> Sample:
        ids = self.board.written_BN[lane, :count].tolist()
        finished = ids[-1] in self.decoding.stop_ids
        count -= finished
        logps = self.board.logp_BN[lane, :count].tolist() if self.decoding.logps else None
        watched = self.board.watched_BNW[lane, :count].tolist() if self.decoding.watch else None
        return Sample(ids[:count], finished, logps, watched=watched)
