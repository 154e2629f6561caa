"""The cache gives what no cache would, at every position, while samples come and go."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny_llama import GROUPED, tiny_model
from torch import Tensor

from llama.cache import GROWTH, Cache
from llama.model import Llama

SHAPES = [GROUPED, replace(GROUPED, n_kv_heads=4), replace(GROUPED, n_kv_heads=1)]
PROMPTS = [[5, 9, 1, 30, 7], [8, 2], [4, 4, 4, 4, 4, 4, 3], [11]]
SAMPLES = [2, 3, 1, 2]


def tensor(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers)


class Walk:
    """Writes random tokens through a cache, and keeps every slot's whole text beside it."""

    def __init__(self, model: Llama, seed: int = 0, shared: Sequence[int] = ()) -> None:
        self.model, self.random = model, torch.Generator().manual_seed(seed)
        self.cache = Cache(model.config, torch.float32, torch.device("cpu"))
        self.texts: list[list[int]] = []
        self.shared = list(shared)
        if shared:
            [logits_TV] = model(tensor(self.shared)[None], self.cache.share(len(shared)))
            self.compare(logits_TV, self.shared)

    def admit(self, prompts: list[list[int]], samples: list[int]) -> None:
        lengths = tensor([len(prompt) for prompt in prompts])
        cohort = self.cache.admit(lengths, tensor(samples), 100)
        for rows in (slice(0, 2), slice(2, len(prompts))):
            T = int(lengths[rows].max())
            tokens_BT = tensor([prompt + [0] * (T - len(prompt)) for prompt in prompts[rows]])
            logits_BTV = self.model(tokens_BT, cohort.prefill(rows, T))
            for prompt, logits_TV in zip(prompts[rows], logits_BTV):
                self.compare(logits_TV[: len(prompt)], self.shared + prompt)
        for prompt, n in zip(prompts, samples):
            self.texts += [self.shared + prompt for _ in range(n)]

    def step(self) -> None:
        new = torch.randint(GROUPED.vocab_size, (len(self.texts),), generator=self.random)
        self.texts = [[*text, int(token)] for text, token in zip(self.texts, new)]
        logits_S1V = self.model(new[:, None], self.cache.decode())
        for text, logits_1V in zip(self.texts, logits_S1V):
            self.compare(logits_1V, text)

    def release(self, share: float) -> None:
        kept = torch.rand(len(self.texts), generator=self.random) < share
        self.texts = [self.texts[slot] for slot in self.cache.release(kept).tolist()]

    def compare(self, logits_TV: Tensor, text: list[int]) -> None:
        uncached_TV = self.model(tensor(text)[None])[0, -len(logits_TV) :]
        assert (logits_TV - uncached_TV).abs().max() < 1e-4


@pytest.mark.parametrize("shared", [[], [7], range(30)], ids=len)
@pytest.mark.parametrize("config", SHAPES)
@torch.inference_mode()
def test_cached_equals_uncached_at_every_position(config, shared) -> None:
    walk = Walk(tiny_model(config), shared=shared)
    for step in range(GROWTH + 4):
        if step in (0, 3, 9):
            walk.admit(PROMPTS, SAMPLES)
        walk.step()
        if step % 2:
            walk.release(0.95)
    assert len(walk.cache.cohorts) > 1
    walk.release(0)
    assert walk.cache.cohorts == [] and walk.cache.tokens_held == len(shared)


@torch.inference_mode()
def test_the_walk_notices_a_cache_that_is_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a token written one place late."""
    walk = Walk(tiny_model())
    walk.admit(PROMPTS, SAMPLES)
    walk.step()
    for cohort in walk.cache.cohorts:
        cohort.age += 1
    with pytest.raises(AssertionError):
        walk.step()


@pytest.mark.parametrize("damage", ["a token", "its place"])
@torch.inference_mode()
def test_the_walk_notices_what_is_wrong_with_the_shared_tokens(damage: str) -> None:
    """Negative control: the last shared token forgotten, or the prompts' places counted from 0."""
    walk = Walk(tiny_model(), shared=[3, 1, 4, 1, 5])
    walk.admit(PROMPTS, SAMPLES)
    if damage == "a token":
        walk.cache.shared.v_YCGD[:, -1] = 0
    else:
        walk.cache.shared.size -= 1
        walk.cache.shared.k_YCGD = walk.cache.shared.k_YCGD[:, :-1]
        walk.cache.shared.v_YCGD = walk.cache.shared.v_YCGD[:, :-1]
    with pytest.raises(AssertionError):
        walk.step()


@torch.inference_mode()
def test_a_prompt_is_kept_once_and_goes_with_its_last_sample() -> None:
    walk = Walk(tiny_model())
    walk.admit(PROMPTS, SAMPLES)
    [cohort] = walk.cache.cohorts
    assert cohort.prefix_v_YRGTD.shape[1] == 4 and cohort.slots == 8
    kept = tensor([0, 1, 0, 0, 0, 1, 1, 1]).bool()  # the second prompt's three samples leave
    order = walk.cache.release(kept)
    assert sorted(order.tolist()) == [1, 5, 6, 7] and len(cohort.prompt_R) == 3
    walk.texts = [walk.texts[slot] for slot in order.tolist()]
    walk.step()


@torch.inference_mode()
def test_memory_that_holds_nothing_yet_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator hands out is NaN, and so is all that was released."""
    empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *args: empty(*args).fill_(torch.nan))
    walk = Walk(tiny_model(), shared=[3, 1, 4])
    walk.admit(PROMPTS, SAMPLES)
    for _ in range(5):
        walk.step()
        walk.release(0.9)
        [cohort] = walk.cache.cohorts
        for arena in (cohort.suffix_k_YSGND, cohort.suffix_v_YSGND):
            arena[:, cohort.slots :] = torch.nan
        for arena in (cohort.prefix_k_YRGDT, cohort.prefix_v_YRGTD):
            arena[:, len(cohort.prompt_R) :] = torch.nan
        cohort.suffix_k_YSGND[:, :, :, cohort.age :] = torch.nan
