"""Drawing a token: exact laws on a grid of u, not statistics."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sampling.sample import choose, key, streams, uniforms


def grid(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def truncated(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The distribution to be drawn from, by the book, in plain Python."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    kept, mass = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda token: -weights[token]):
        if mass >= top_p * sum(weights):
            break
        kept.add(token)
        mass += weights[token]
    return [weight / mass if token in kept else 0.0 for token, weight in enumerate(weights)]


def counts(logits: Tensor, n: int, temperature: float, top_p: float) -> Tensor:
    tokens = choose(logits.expand(n, -1), grid(n), temperature, top_p)
    return tokens.bincount(minlength=logits.shape[-1])


@given(
    seed=st.integers(0, 2**32),
    V=st.integers(2, 100),  # up to four blocks of `Sums`, whole and not
    temperature=st.floats(0.3, 2.0),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 0.99)),
)
def test_the_grid_of_u_gives_the_truncated_distribution(seed, V, temperature, top_p) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3
    expected = torch.tensor(truncated(logits.tolist(), temperature, top_p))
    found = counts(logits, 500, temperature, top_p)
    assert (found - 500 * expected).abs().max() <= 1.01
    assert not found[expected == 0].any()


def test_the_law_holds_where_tokens_are_put_into_buckets() -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 3
    expected = torch.tensor(truncated(logits.tolist(), 0.7, 0.9))
    found = counts(logits, 2000, 0.7, 0.9)
    assert (found - 2000 * expected).abs().max() <= 1.01
    assert not found[expected == 0].any() and (expected == 0).sum() > 1000


def test_the_law_notices_another_distribution() -> None:
    """Negative controls: no cut, a cut one token short, another temperature."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0])
    found = counts(logits, 500, 1.0, 0.8)
    for temperature, top_p in ((1.0, 1.0), (1.0, 0.5), (0.8, 0.8)):
        wrong = torch.tensor(truncated(logits.tolist(), temperature, top_p))
        assert (found - 500 * wrong).abs().max() > 5


def test_a_top_p_that_is_reached_exactly_needs_no_further_token() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert counts(logits, 80, 1.0, 0.8).tolist() == [50, 30, 0]
    assert counts(logits, 100, 1.0, 0.81).tolist() == [50, 30, 20]
    assert counts(logits, 100, 1.0, 0.5).tolist() == [100, 0, 0]
    assert counts(logits, 100, 1.0, 1e-9).tolist() == [100, 0, 0]


def test_tokens_without_weight_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    edges = torch.tensor([5e-324, 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    for top_p in (1.0, 0.9):
        assert set(choose(logits.expand(4, -1), edges, 1.0, top_p).tolist()) == {1, 3}


def test_temperature_0_is_the_likeliest_whatever_top_p_and_u() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    for top_p in (0.001, 0.9, 1.0):
        assert torch.equal(choose(logits, grid(200), 0.0, top_p), logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-40, 1e-38, 2e-38])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_temperature_that_float32_cannot_hold_is_as_good_as_0(temperature, top_p) -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    assert choose(logits, grid(5), temperature, top_p).equal(logits.argmax(dim=-1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_no_numbers_raise(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 10)
    choose(logits, grid(3), temperature, 0.9)
    logits[1, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        choose(logits, grid(3), temperature, 0.9)
    with pytest.raises(ValueError, match="NaN or infinity"):
        choose(torch.full((1, 4), -math.inf), grid(1), temperature, 0.9)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * 2
    u = grid(64)
    together = choose(logits, u, 0.7, 0.9)
    alone = [choose(logits[i : i + 1], u[i : i + 1], 0.7, 0.9) for i in range(64)]
    assert torch.equal(together, torch.cat(alone))


def reference_uniform(seed: int, request: str, sample: int, position: int) -> float:
    """SplitMix64 in Python's own integers."""

    def mix(x: int) -> int:
        x = (x + 1) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    stream = mix(mix(key(request) + key(f"seed {seed}")) + sample)
    return ((mix(stream + position) >> 13) + 0.5) / 2**51


@given(st.integers(), st.text(), st.integers(0, 2**40), st.integers(0, 2**40))
def test_uniforms_are_those_of_splitmix64(seed, request, sample, position) -> None:
    stream = streams(seed, torch.tensor([key(request)]), torch.tensor([sample]))
    [u] = uniforms(stream, torch.tensor([position])).tolist()
    assert u == reference_uniform(seed, request, sample, position)
    assert 0 < u < 1


def test_uniforms_are_uniform_and_all_four_coordinates_count() -> None:
    keys = torch.tensor([key(f"p{i}") for i in range(20)])
    samples, positions = torch.arange(8), torch.arange(200)
    u = torch.stack(
        [
            uniforms(streams(seed, keys[:, None, None], samples[:, None]), positions)
            for seed in (0, 1)
        ]
    ).flatten()
    assert len(u.unique()) == len(u)
    sorted_u, even = u.sort().values, grid(len(u))
    assert (sorted_u - even).abs().max() * math.sqrt(len(u)) < 1.63  # Kolmogorov, 1 %
    assert torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1].abs() < 0.01


def test_keys_are_the_same_everywhere() -> None:
    assert key("") == 8238016292129134938 and key("é") == 7317610273420446871
    assert all(0 <= key(str(i)) < 2**63 for i in range(1000))
