"""The threshold of a top-p set: the same from buckets as from sorting, and as by the book."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sampling import nucleus
from sampling.nucleus import FEW, least_kept
from sampling.sample import choose


def by_the_book(weights: list[float], top_p: float) -> float:
    """The last token taken, from the most probable on, until top-p is reached."""
    mass = 0.0
    for weight in sorted(weights, reverse=True):
        mass += weight
        if mass >= top_p * math.fsum(weights) * (1 - 1e-9):
            return weight
    raise AssertionError


def weights(rows: int, V: int, scale: float, seed: int, rounded: bool = False) -> Tensor:
    logits = torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * scale
    if rounded:  # to bf16: then many tokens are as probable as each other
        logits = logits.bfloat16().float()
    return (logits - logits.amax(dim=-1, keepdim=True)).exp()


@given(
    seed=st.integers(0, 2**32),
    V=st.integers(FEW + 1, 5000),
    scale=st.sampled_from((0.01, 1.0, 4.0, 30.0)),
    top_p=st.floats(0.01, 0.995),
    rounded=st.booleans(),
)
def test_buckets_find_what_the_book_says(seed, V, scale, top_p, rounded) -> None:
    weight_BV = weights(3, V, scale, seed, rounded)
    found = least_kept(weight_BV, top_p)[:, 0].tolist()
    for row, least in zip(weight_BV.tolist(), found):
        near = [by_the_book(row, p) for p in (top_p - 3e-6, top_p, top_p + 3e-6) if 0 < p < 1]
        assert min(near) <= least <= max(near)


@pytest.mark.parametrize("V", [FEW, FEW + 1])
def test_both_ways_agree_where_they_meet(V: int) -> None:
    weight_BV = weights(50, V, 2.0, 0)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        found = least_kept(weight_BV, top_p)
        ascending = weight_BV.sort(dim=-1).values
        assert torch.equal(found, nucleus.first_kept(ascending, top_p))
        assert torch.equal(found, nucleus._by_buckets(weight_BV, top_p))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """To the bit, though rows with more tokens near the threshold make the others' table wider."""
    flat, peaked = weights(4, 3000, 0.01, 1), weights(4, 3000, 5.0, 2)
    together = least_kept(torch.cat((flat, peaked)), 0.9)
    alone = [least_kept(row[None], 0.9) for row in (*flat, *peaked)]
    assert torch.equal(together, torch.cat(alone))


def test_tokens_as_probable_as_the_last_and_such_without_weight() -> None:
    weight_1V = torch.zeros(1, 2000)
    weight_1V[0, 10:20] = 0.5
    weight_1V[0, 5] = 1.0
    for top_p in (0.3, 0.9, 0.999):
        assert least_kept(weight_1V, top_p).item() == 0.5
    for top_p in (0.05, 1 / 6):
        assert least_kept(weight_1V, top_p).item() == 1.0
    assert least_kept(torch.ones(1, 2000), 0.9).item() == 1.0


def test_the_smallest_numbers_have_buckets_too() -> None:
    """One token has all the mass that fp32 can tell; the rest is as small as numbers get."""
    weight_1V = torch.full((1, 2000), 1e-45)
    weight_1V[0, 7] = 1.0
    assert least_kept(weight_1V, 0.9).item() == 1.0


def test_so_many_rows_are_drawn_as_few_are() -> None:
    """More rows than are worked on at once, of a vocabulary that is put into buckets."""
    logits = torch.randn(30, 20_000, generator=torch.Generator().manual_seed(0)) * 2
    u = (torch.arange(30, dtype=torch.float64) + 0.5) / 30
    together = choose(logits, u, 0.7, 0.9)
    alone = [choose(logits[i : i + 1], u[i : i + 1], 0.7, 0.9) for i in range(30)]
    assert torch.equal(together, torch.cat(alone))
