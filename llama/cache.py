"""The keys and values of what is being written: each prompt's once, each sample's own.

Prompts that are read together make a cohort with their samples, and its samples are all of one age:
```
  shared   once              | <s> [INST] Review: kind, order. |    what all prompts begin with
  prefix   a row a prompt    | Task: name three fruits [/INST] . |  one for all its samples
  suffix   a slot a sample   | pear plum fig . . . . . |            age: 3 tokens
```
So both arenas are read end to end, as memory likes it: rows are as long as the cohort's longest
prompt, slots a few tokens longer than its age, and they grow with it. Decoding reads a prompt once
for all of its samples: in products over (row, key-value head), where the queries of a row's samples
stand together. Knows no weights, no text and no sampling.
"""

# R rows, S slots, W most samples of one prompt, T tokens of the longest prompt, N tokens a slot
# C tokens that all prompts begin with, B rows being read
# H query heads, G key-value heads, M = H / G, D head width, Y layers

from __future__ import annotations

import torch
from torch import Tensor

from llama.attention import AfterPrefix, CausalRows
from llama.config import LlamaConfig

GROWTH = 16  # tokens by which slots grow at least: seldom copied, and little read in vain


def token_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Memory for the keys and values of one token."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * dtype.itemsize


class Cache:
    """The cohorts in progress, oldest first; their slots are numbered through in that order."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.cohorts: list[Cohort] = []
        self.shared = Shared(config, 0, self.like)

    @property
    def tokens_held(self) -> int:
        """Tokens that memory is, or will be, taken for."""
        return self.shared.size + sum(cohort.tokens_held for cohort in self.cohorts)

    @property
    def bytes_held(self) -> int:
        """Memory taken by now."""
        tensors = [self.shared.k_YCGD, self.shared.v_YCGD]
        for cohort in self.cohorts:
            tensors += [cohort.prefix_k_YRGDT, cohort.prefix_v_YRGTD]
            tensors += [cohort.suffix_k_YSGND, cohort.suffix_v_YSGND]
        return sum(tensor.nbytes for tensor in tensors)

    def share(self, C: int) -> Shared:
        """What reads the C tokens that all prompts begin with, as one row, before any prompt.

        The prompts that are admitted afterwards are what follows those tokens.
        """
        self.shared = Shared(self.config, C, self.like)
        return self.shared

    def admit(self, prompt_R: Tensor, samples_R: Tensor, new: int) -> Cohort:
        """A cohort for prompts of these lengths, each with some samples of at most `new` tokens."""
        self.cohorts.append(Cohort(prompt_R, samples_R, new, self.shared))
        return self.cohorts[-1]

    def decode(self) -> Decode:
        """Makes place for one more token in every slot; it attends to its prompt and its past."""
        for cohort in self.cohorts:
            cohort.grow()
        return Decode(self.cohorts)

    def release(self, kept_S: Tensor) -> Tensor:
        """Gives up the slots that are not kept (bool), and prompts that nobody needs any more.

        Returns for each slot that is left the number it had before.
        """
        orders, start = [], 0
        for cohort, kept in zip(self.cohorts, kept_S.split([c.slots for c in self.cohorts])):
            orders.append(cohort.release(kept) + start)
            start += len(kept)
        self.cohorts = [cohort for cohort in self.cohorts if cohort.slots]
        return torch.cat(orders)


class Shared:
    """The keys and values of what all prompts begin with; reads it, as an `Attend`."""

    def __init__(self, config: LlamaConfig, C: int, like: Tensor) -> None:
        self.size, self.like = C, like
        shape = (config.n_layers, C, config.n_kv_heads, config.head_dim)
        self.k_YCGD, self.v_YCGD = like.new_empty(shape), like.new_empty(shape)
        self.within = CausalRows(C, like.device)
        self.positions_BT = self.within.positions_BT

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        self.k_YCGD[layer], self.v_YCGD[layer] = k_BTGD[0], v_BTGD[0]
        return self.within(layer, q_BTHD, k_BTGD, v_BTGD)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values CGD of a layer."""
        return self.k_YCGD[layer], self.v_YCGD[layer]


class Cohort:
    """Prompts that were read together, and their samples."""

    def __init__(self, prompt_R: Tensor, samples_R: Tensor, new: int, shared: Shared) -> None:
        R, T, S = len(prompt_R), int(prompt_R.max()), int(samples_R.sum())
        Y, _, G, D = shared.k_YCGD.shape
        self.shared, like = shared, shared.like
        # prompts' keys stand transposed, as their product with the queries reads them
        self.prefix_k_YRGDT = like.new_empty(Y, R, G, D, T)
        self.prefix_v_YRGTD = like.new_empty(Y, R, G, T, D)
        self.suffix_k_YSGND = like.new_empty(Y, S, G, 0, D)
        self.suffix_v_YSGND = like.new_empty(Y, S, G, 0, D)
        self.age, self.new = 0, new
        self.seats = int(samples_R.max())
        self.prompt_R = prompt_R
        self.row_S = torch.arange(R, device=like.device).repeat_interleave(samples_R)
        first_R = samples_R.cumsum(0) - samples_R
        self.seat_S = torch.arange(S, device=like.device) - first_R[self.row_S]
        self._arrange()

    @property
    def slots(self) -> int:
        """Samples in progress."""
        return len(self.row_S)

    @property
    def tokens_held(self) -> int:
        """Tokens that memory is, or will be, taken for."""
        return self.prompt_R.numel() * self.prefix_v_YRGTD.shape[3] + self.slots * self.new

    def prefill(self, rows: slice, T: int) -> Prefill:
        """What prompts attend to that are read into these rows, padded to T tokens."""
        return Prefill(self, rows, T)

    def grow(self) -> None:
        """Makes place for one more token in every slot."""
        self.age += 1
        if self.age > self.suffix_k_YSGND.shape[3]:
            more = min(max(GROWTH, self.age // 8), self.new - self.age + 1)
            self.suffix_k_YSGND = _longer(self.suffix_k_YSGND[:, : self.slots], more)
            self.suffix_v_YSGND = _longer(self.suffix_v_YSGND[:, : self.slots], more)

    def release(self, kept_S: Tensor) -> Tensor:
        """See `Cache.release`: the last slots move into the holes, and so do the last rows."""
        order_S = _close(kept_S)
        if len(order_S) == len(kept_S):
            return order_S
        self.row_S, self.seat_S = self.row_S[order_S], self.seat_S[order_S]
        if not self.slots:
            return order_S
        _move(self.suffix_k_YSGND, order_S)
        _move(self.suffix_v_YSGND, order_S)
        needed_R = torch.zeros_like(self.prompt_R, dtype=torch.bool)
        needed_R[self.row_S] = True
        order_R = _close(needed_R)
        if len(order_R) < len(needed_R):
            _move(self.prefix_k_YRGDT, order_R)
            _move(self.prefix_v_YRGTD, order_R)
            now_R = torch.zeros_like(self.prompt_R)
            now_R[order_R] = torch.arange(len(order_R), device=now_R.device)
            self.row_S, self.prompt_R = now_R[self.row_S], self.prompt_R[order_R]
        self._arrange()
        return order_S

    def _arrange(self) -> None:
        """Who sits where: (slot, head) among (row, head, seat), and back.

        An empty seat repeats slot 0; nobody asks for what comes of it.
        """
        R, S, W, G = len(self.prompt_R), self.slots, self.seats, self.prefix_k_YRGDT.shape[2]
        T = self.prefix_v_YRGTD.shape[3]
        self.prompt_S = self.prompt_R[self.row_S]
        padding_R1T = torch.arange(T, device=self.row_S.device) >= self.prompt_R[:, None, None]
        zeros_R1T = self.prefix_k_YRGDT.new_zeros(R, 1, T)
        self.unseen_R1T = zeros_R1T.masked_fill(padding_R1T, -torch.inf)
        head_G = torch.arange(G, device=self.row_S.device)
        seat_SG = (self.row_S[:, None] * G + head_G) * W + self.seat_S[:, None]
        self.seat_of_SG = seat_SG.flatten()
        self.taker_of_RGW = torch.zeros(R * G * W, dtype=torch.int64, device=self.row_S.device)
        self.taker_of_RGW[self.seat_of_SG] = torch.arange(S * G, device=self.row_S.device)

    def attend(self, layer: int, q_SHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> Tensor:
        """Attention SHD of each slot's newest token to its prompt and to what it wrote.

        ```
          shared        x y       slot 0 (row 0) wrote  p q      its scores  x y | a b c | p q
          row 0 prompt  a b c     slot 1 (row 1) wrote  r s                  x y | d e . | r s
          row 1 prompt  d e .     slot 2 (row 0) wrote  t u                  x y | a b c | t u
        ```
        """
        (S, H, D), G, R, age = q_SHD.shape, k_SGD.shape[1], len(self.prompt_R), self.age
        SG, RG, M = S * G, R * G, H // G
        own_k_SGND, own_v_SGND = self.suffix_k_YSGND[layer, :S], self.suffix_v_YSGND[layer, :S]
        own_k_SGND[:, :, age - 1] = k_SGD
        own_v_SGND[:, :, age - 1] = v_SGD
        own_k, own_v = own_k_SGND.flatten(0, 1), own_v_SGND.flatten(0, 1)
        prompt_k = self.prefix_k_YRGDT[layer, :R].flatten(0, 1)
        prompt_v = self.prefix_v_YRGTD[layer, :R].flatten(0, 1)
        shared_k_CGD, shared_v_CGD = self.shared.of(layer)

        C, T = self.shared.size, prompt_v.shape[1]
        q = q_SHD.reshape(SG, M, D) * D**-0.5
        of_prompt = self._seat(q).view(RG, -1, D) @ prompt_k
        of_prompt.view(R, -1, T).add_(self.unseen_R1T)
        of_own = q @ own_k.mT
        of_own[..., age:] = -torch.inf
        of_shared = _by_slot(_by_head(q.view(S, G, M, D)) @ shared_k_CGD.permute(1, 2, 0), S)
        scores = (of_shared.reshape(SG, M, C), self._leave(of_prompt).view(SG, M, T), of_own)
        weights = torch.cat(scores, dim=-1).softmax(dim=-1)
        of_shared, of_prompt, of_own = weights.split((C, T, own_k.shape[1]), dim=-1)
        out: Tensor = of_own @ own_v
        out += self._leave(self._seat(of_prompt).view(RG, -1, T) @ prompt_v).view(SG, M, D)
        if C:
            seen = _by_head(of_shared.reshape(S, G, M, C)) @ shared_v_CGD.transpose(0, 1)
            out += _by_slot(seen, S).reshape(SG, M, D)
        return out.view(S, H, D)

    def _seat(self, x: Tensor) -> Tensor:
        """(slot, head) … → (row, head, seat) …: the samples of a prompt come together."""
        return x.flatten(1).index_select(0, self.taker_of_RGW)

    def _leave(self, x: Tensor) -> Tensor:
        """(row, head, seat) … → (slot, head) …"""
        return x.view(len(self.taker_of_RGW), -1).index_select(0, self.seat_of_SG)


def _by_head(x_SGM: Tensor) -> Tensor:
    """(slot, head, query) … → (head, slot and query) …: each head's queries come together."""
    return x_SGM.transpose(0, 1).flatten(1, 2)


def _by_slot(x_GN: Tensor, slots: int) -> Tensor:
    """(head, slot and query) … → (slot, head, query) …"""
    x_GSM: Tensor = x_GN.unflatten(1, (slots, -1))
    return x_GSM.transpose(0, 1)


def _longer(arena_YSGND: Tensor, more: int) -> Tensor:
    """A copy with so many tokens more, zeros: what is masked weighs 0, but 0 times NaN is NaN."""
    Y, S, G, N, D = arena_YSGND.shape
    longer_YSGND = arena_YSGND.new_empty(Y, S, G, N + more, D)
    longer_YSGND[:, :, :, :N], longer_YSGND[:, :, :, N:] = arena_YSGND, 0
    return longer_YSGND


def _close(kept_N: Tensor) -> Tensor:
    """The order in which the last kept ones have moved into the holes: `a . b . c` → a c b."""
    count = int(kept_N.sum())
    order = torch.arange(count, device=kept_N.device)
    order[~kept_N[:count]] = kept_N[count:].nonzero()[:, 0] + count
    return order


def _move(arena_YN: Tensor, order_N: Tensor) -> None:
    """Puts the arena's second dimension into an order that `_close` made, copying what moved."""
    into = (order_N != torch.arange(len(order_N), device=order_N.device)).nonzero()[:, 0]
    arena_YN[:, into] = arena_YN[:, order_N[into]]


class Prefill:
    """Reads prompts and keeps their keys and values."""

    def __init__(self, cohort: Cohort, rows: slice, T: int) -> None:
        self.cohort, self.rows = cohort, rows
        shared, device = cohort.shared, cohort.row_S.device
        self.within = (
            AfterPrefix(shared.size, T, shared.of, device) if shared.size else CausalRows(T, device)
        )
        self.positions_BT = self.within.positions_BT

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        T, k_BGDT = k_BTGD.shape[1], self.cohort.prefix_k_YRGDT[layer, self.rows]
        v_BGTD = self.cohort.prefix_v_YRGTD[layer, self.rows]
        k_BGDT[..., :T], v_BGTD[..., :T, :] = k_BTGD.permute(0, 2, 3, 1), v_BTGD.transpose(1, 2)
        k_BGDT[..., T:], v_BGTD[..., T:, :] = 0, 0  # as in `_longer`
        return self.within(layer, q_BTHD, k_BTGD, v_BTGD)


class Decode:
    """One token a slot, in all cohorts."""

    def __init__(self, cohorts: list[Cohort]) -> None:
        self.cohorts = cohorts
        self.sizes = [cohort.slots for cohort in cohorts]
        places = [cohort.shared.size + cohort.prompt_S + (cohort.age - 1) for cohort in cohorts]
        self.positions_BT = torch.cat(places)[:, None]

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        parts = zip(
            self.cohorts, *(x.squeeze(1).split(self.sizes) for x in (q_BTHD, k_BTGD, v_BTGD))
        )
        return torch.cat([cohort.attend(layer, q, k, v) for cohort, q, k, v in parts])[:, None]
