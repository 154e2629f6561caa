"""The length-controlled win rate: laws, limits, and another solver on the same likelihood."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from judge.length import RIDGE, length_controlled

OUTCOMES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12)


def units(outcomes):
    return [str(i) for i in range(len(outcomes))]


def rate(outcomes, differences):
    return length_controlled(outcomes, differences, units(outcomes), seed=0)[0]


@given(OUTCOMES)
def test_at_equal_lengths_it_is_the_plain_win_rate(outcomes):
    plain = sum(outcomes) / len(outcomes)
    assert rate(outcomes, [0] * len(outcomes)) == pytest.approx(plain, abs=1e-9)


def test_where_length_alone_decides_nobody_wins():
    differences = [-9, -4, -1, 1, 4, 9] * 20
    outcomes = [float(d > 0) for d in differences]
    assert rate(outcomes, differences) == pytest.approx(0.5, abs=1e-6)


def test_a_model_that_wins_by_being_longer_loses_the_gain():
    """Longer wins nine times in ten, whoever it is; ours is longer nine times in ten."""
    differences = [5.0] * 90 + [-5.0] * 10
    outcomes = [1.0] * 81 + [0.0] * 9 + [1.0] + [0.0] * 9
    assert sum(outcomes) / 100 == 0.82
    assert rate(outcomes, differences) == pytest.approx(0.5, abs=0.005)


def test_where_length_decides_without_exception_part_of_the_gain_remains():
    """Nothing then tells length from merit; the likeliest a is half the log odds of the wins."""
    differences = [5.0] * 90 + [-5.0] * 10
    outcomes = [float(d > 0) for d in differences]
    assert rate(outcomes, differences) == pytest.approx(0.75, abs=0.005)  # σ(ln 9 / 2)


def test_where_length_does_not_matter_it_takes_nothing_away():
    differences = [-3.0, 3.0] * 50
    outcomes = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0] * 10
    assert rate(outcomes, differences) == pytest.approx(sum(outcomes) / 100, abs=1e-6)


@given(OUTCOMES, st.data())
def test_ours_and_theirs_changed_over_add_up_to_one(outcomes, data):
    sizes = st.lists(st.integers(-9, 9), min_size=len(outcomes), max_size=len(outcomes))
    differences = data.draw(sizes)
    mirrored = rate([1 - y for y in outcomes], [-d for d in differences])
    assert rate(outcomes, differences) + mirrored == pytest.approx(1, abs=1e-6)


@given(OUTCOMES, st.data())
def test_the_unit_of_length_does_not_matter(outcomes, data):
    sizes = st.lists(st.integers(-9, 9), min_size=len(outcomes), max_size=len(outcomes))
    differences = data.draw(sizes)
    tenfold = rate(outcomes, [10 * d for d in differences])
    assert rate(outcomes, differences) == pytest.approx(tenfold, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_maximum_of_the_likelihood(seed):
    random = np.random.default_rng(seed)
    d = random.integers(-6, 12, size=60).astype(float)
    y = random.choice([0.0, 0.5, 1.0], size=60)
    x = np.tanh(d / np.sqrt(np.mean(d**2)))

    def unlikelihood(ab):
        z = ab[0] + ab[1] * x
        return (np.logaddexp(0, z) - y * z).sum() + RIDGE / 2 * ab[1] ** 2

    best = minimize(unlikelihood, [0.0, 0.0], tol=1e-12).x[0]
    assert rate(list(y), list(d)) == pytest.approx(1 / (1 + np.exp(-best)), abs=1e-4)


@pytest.mark.parametrize("worth", [0.0, 1.0])
def test_a_clean_sweep_stays_finite(worth):
    found, low, high = length_controlled([worth] * 9, range(9), list("abcdefghi"), seed=0)
    assert found == pytest.approx(worth, abs=1e-6)
    assert low == pytest.approx(worth, abs=1e-6) and high == pytest.approx(worth, abs=1e-6)


def test_the_interval_resamples_prompts_not_answers():
    """Four copies of each outcome under one prompt tell no more than one."""
    random = np.random.default_rng(1)
    outcomes, differences = list(random.integers(0, 2, 50) * 1.0), list(random.normal(size=50))
    once = length_controlled(outcomes, differences, units(outcomes), seed=0)
    copies = [4 * [value] for value in (outcomes, differences, units(outcomes))]
    four = length_controlled(*(list(np.repeat(c[0], 4)) for c in copies), seed=0)
    apart = length_controlled(
        list(np.repeat(outcomes, 4)), list(np.repeat(differences, 4)), list(range(200)), seed=0
    )
    assert four == pytest.approx(once, abs=0.01)
    assert apart[2] - apart[1] < 0.6 * (once[2] - once[1])  # the control: as if they were 200


def test_nothing_is_not_a_number():
    assert length_controlled([], [], [], seed=0) is None
