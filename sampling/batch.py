"""The samples in progress: reads prompts, writes a token to each sample, lets the ended ones go.

Knows the cache only as slots that are given and taken back. Knows no text and no ranks.
"""

# S slots in use, N tokens of the longest sample, V vocabulary
# A asks, T tokens of the longest prompt among them, B asks read at once, C width
# W watched tokens of the vocabulary

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama.cache import Cache, Cohort
from llama.model import Llama
from sampling.sample import choose, probabilities, streams, uniforms

REFILL_SHARE = 1 / 4  # of the slots must be free before prompts are read: one by one is slow
PREFILL_TOKENS = 2048  # read at once: enough to fill the machine, little enough for its caches

Owner = tuple[int, int]  # request, sample


@dataclass(frozen=True)
class Ask:
    """A prompt and those of its request's samples that are written beside each other."""

    request: int  # its place among the requests
    key: int  # the name of its randomness
    prompt: list[int]
    samples: range
    limit: int  # tokens, for each of the samples


@dataclass(frozen=True)
class Sample:
    """New tokens, without the one that stopped them; `finished` says whether one did.

    logps: the model's own log-probability of each token (at temperature 1, all tokens allowed),
    where `Decoding.logps` asks for them. watched: at each token, the probability of each of those
    that `Decoding.watch` names. refused: why there are no tokens, where nothing was tried.
    """

    token_ids: list[int]
    finished: bool
    logps: list[float] | None = None
    refused: str | None = None
    watched: list[list[float]] | None = None


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn, and which of them end a sample."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512
    stop_ids: frozenset[int] = frozenset()
    logps: bool = False  # of the tokens drawn, too
    watch: tuple[int, ...] = ()  # tokens whose probability is told at each place, drawn or not


class Batch:
    """Samples in progress. `owners[s]` is whose sample stands in slot s of the cache."""

    def __init__(
        self, model: Llama, decoding: Decoding, seed: int, slots: int = 1, room: float = math.inf
    ) -> None:
        """slots: samples in progress at most; room: tokens that the cache may hold."""
        weight = next(model.parameters())
        self.slots, self.room = slots, room
        self.tokens = 0  # written by now
        self.model, self.decoding, self.seed, self.device = model, decoding, seed, weight.device
        self.cache = Cache(model.config, weight.dtype, weight.device)
        self.owners: list[Owner] = []
        self.stops_V = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.stops_V[sorted(decoding.stop_ids)] = True
        self.stream_S = self.count_S = self.limit_S = self._integers(0)
        self.written_SN = self._integers(0, decoding.max_new_tokens)
        self.logp_SN = self.written_SN.float()  # written to if the decoding asks for it
        self.watched_SNW = self._blank_watched(0)

    def share(self, prefix: list[int]) -> None:
        """Reads what all prompts begin with. The asks that follow hold what comes after it."""
        tokens_1T = torch.tensor([prefix], device=self.device)
        self.model(tokens_1T, self.cache.share(len(prefix)), head=lambda hidden, project: None)

    def take(self, waiting: deque[Ask]) -> list[Ask]:
        """Takes what is to be read now from the queue: prompts of about one length, if any."""
        free_slots = self.slots - len(self.owners)
        free_tokens = self.room - self.cache.tokens_held
        if not waiting or (self.owners and free_slots < REFILL_SHARE * self.slots):
            return []
        asked: list[Ask] = []
        longest, new, samples = len(waiting[0].prompt), waiting[0].limit, 0
        while waiting and 0 <= longest - len(waiting[0].prompt) <= max(16, longest // 4):
            samples, new = samples + len(waiting[0].samples), max(new, waiting[0].limit)
            if samples > free_slots or longest * (len(asked) + 1) + new * samples > free_tokens:
                break
            asked.append(waiting.popleft())
        return asked

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)

    def _blank_watched(self, slots: int) -> Tensor:
        shape = slots, self.decoding.max_new_tokens, len(self.decoding.watch)
        return torch.zeros(shape, device=self.device)

    def read(self, asks: Sequence[Ask]) -> list[tuple[Owner, Sample]]:
        """Reads prompts and writes the first token of each of their samples; see `step`."""
        numbers = [[ask.key, ask.limit, len(ask.prompt), len(ask.samples)] for ask in asks]
        key_A, limit_A, prompt_A, n_A = torch.tensor(numbers, device=self.device).T
        owners = [(ask.request, sample) for ask in asks for sample in ask.samples]
        sample_S = torch.tensor([sample for _, sample in owners], device=self.device)
        ask_S = torch.arange(len(asks), device=self.device).repeat_interleave(n_A)
        new = slice(len(self.owners), None)
        self.owners += owners
        stream_S = streams(self.seed, key_A[ask_S], sample_S)
        self.stream_S = torch.cat((self.stream_S, stream_S))
        self.limit_S = torch.cat((self.limit_S, limit_A[ask_S]))
        self.count_S = torch.cat((self.count_S, torch.zeros_like(sample_S)))
        blank_SN = self._integers(len(owners), self.decoding.max_new_tokens)
        self.written_SN = torch.cat((self.written_SN, blank_SN))
        if self.decoding.logps:
            self.logp_SN = torch.cat((self.logp_SN, blank_SN.float()))
        if self.decoding.watch:
            blank_SNW = self._blank_watched(len(owners))
            self.watched_SNW = torch.cat((self.watched_SNW, blank_SNW))
        cohort = self.cache.admit(prompt_A, n_A, int(limit_A.max()))
        logits_AV = self._prefill([ask.prompt for ask in asks], cohort)
        return self._write(logits_AV[ask_S], new)

    def _prefill(self, prompts: list[list[int]], cohort: Cohort) -> Tensor:
        """Logits AV of what follows each prompt."""
        some = max(1, PREFILL_TOKENS // max(map(len, prompts)))
        parts = (slice(start, start + some) for start in range(0, len(prompts), some))
        return torch.cat([self._prefill_rows(prompts[rows], cohort, rows) for rows in parts])

    def _prefill_rows(self, prompts: list[list[int]], cohort: Cohort, rows: slice) -> Tensor:
        B, T = len(prompts), max(map(len, prompts))
        padded = [prompt + [0] * (T - len(prompt)) for prompt in prompts]
        tokens_BT = torch.tensor(padded, device=self.device)
        last_B = torch.arange(B, device=self.device) * T + cohort.prompt_R[rows] - 1
        logits_BV: Tensor = self.model(tokens_BT, cohort.prefill(rows, T), wanted_N=last_B)
        return logits_BV

    def step(self) -> list[tuple[Owner, Sample]]:
        """Writes one token to every sample. Returns those that ended, and gives their slots up."""
        last_S1 = self.written_SN.gather(1, self.count_S[:, None] - 1)
        return self._write(self.model(last_S1, self.cache.decode())[:, 0], slice(0, None))

    def _write(self, logits_SV: Tensor, slots: slice) -> list[tuple[Owner, Sample]]:
        how, count_S = self.decoding, self.count_S[slots]
        u_S = uniforms(self.stream_S[slots], count_S)
        token_S = choose(logits_SV, u_S, how.temperature, how.top_p)
        self.written_SN[slots].scatter_(1, count_S[:, None], token_S[:, None])
        if how.logps:
            logp_S1 = logits_SV.float().log_softmax(dim=-1).gather(1, token_S[:, None])
            self.logp_SN[slots].scatter_(1, count_S[:, None], logp_S1)
        if how.watch:
            row_S = torch.arange(len(token_S), device=self.device)
            self.watched_SNW[slots][row_S, count_S] = probabilities(logits_SV, how.watch)
        count_S += 1
        self.tokens += len(token_S)
        ended_S = torch.zeros(len(self.owners), dtype=torch.bool, device=self.device)
        ended_S[slots] = self.stops_V[token_S] | (count_S >= self.limit_S[slots])
        return self._release(ended_S) if ended_S.any() else []

    def _release(self, ended_S: Tensor) -> list[tuple[Owner, Sample]]:
        ended = [
            (self.owners[slot], self.sample(slot)) for slot in ended_S.nonzero()[:, 0].tolist()
        ]
        order_S = self.cache.release(~ended_S)
        self.owners = [self.owners[slot] for slot in order_S.tolist()]
        self.stream_S, self.count_S = self.stream_S[order_S], self.count_S[order_S]
        self.limit_S, self.written_SN = self.limit_S[order_S], self.written_SN[order_S]
        if self.decoding.logps:
            self.logp_SN = self.logp_SN[order_S]
        if self.decoding.watch:
            self.watched_SNW = self.watched_SNW[order_S]
        return ended

    def sample(self, slot: int) -> Sample:
        """What stands in a slot by now."""
        count = int(self.count_S[slot])
        ids = self.written_SN[slot, :count].tolist()
        finished = ids[-1] in self.decoding.stop_ids
        count -= finished
        logps = self.logp_SN[slot, :count].tolist() if self.decoding.logps else None
        watched = self.watched_SNW[slot, :count].tolist() if self.decoding.watch else None
        return Sample(ids[:count], finished, logps, watched=watched)
