"""Order, steps and micro-batches: nothing is lost, nothing twice, little is padding."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo.batches import OVERHEAD, WINDOW, Dealer, cut, micro_batches, packs, shuffled
from dpo.lines import Line, Pair, Row, pad, pair_line, row_line

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=9)


def row(length: int) -> Row:
    return Row(list(range(1, length + 1)), [False] + [True] * (length - 1))


def lines(lengths: Sequence[int]) -> list[Line]:
    return [row_line(row(length), i, 10_000) for i, length in enumerate(lengths)]


def dealer(lengths: Sequence[int], batch_size: int, seed: int = 0) -> Dealer[Row]:
    rows = [row(int(length)) for length in lengths]
    return Dealer(rows, partial(row_line, longest=10_000), batch_size, seed)


def ragged(n: int, low: int = 20, high: int = 150) -> list[int]:
    return np.random.default_rng(0).integers(low, high, n).tolist()


def taken(dealt: Dealer[Row], steps: range) -> list[list[int]]:
    return [sorted(line.index for line in dealt.step(step)) for step in steps]


@given(n=st.integers(1, 400), batch_size=st.integers(1, 20), seed=st.integers(0, 9))
def test_an_epoch_takes_each_row_once(n: int, batch_size: int, seed: int) -> None:
    dealt = dealer([5] * n, batch_size, seed)
    per_epoch = dealt.steps_per_epoch
    for epoch in range(2):
        steps = taken(dealt, range(epoch * per_epoch, (epoch + 1) * per_epoch))
        assert sorted(index for step in steps for index in step) == list(range(n))
        sizes = {len(step) for step in steps}
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_a_step_depends_on_seed_and_number_alone() -> None:
    """So a resumed run, which begins in the middle, neither skips nor repeats data."""
    lengths = ragged(1000)
    forward = taken(dealer(lengths, 8), range(300))
    fresh = [taken(dealer(lengths, 8), range(s, s + 1))[0] for s in (299, 130, 124, 7, 0)]
    assert fresh == [forward[s] for s in (299, 130, 124, 7, 0)]
    assert taken(dealer(lengths, 8, seed=1), range(300)) != forward
    assert forward[:125] != forward[125:250]  # another epoch, another order


@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=30), parts=st.integers(1, 5))
def test_ranks_get_equally_many_micro_batches_and_together_all_rows(
    lengths: list[int], parts: int
) -> None:
    micros = micro_batches(lines(lengths), 100, parts)
    assert len(micros) % parts == 0
    found = Counter(line.index for micro in micros for line in micro)
    assert found == Counter(range(len(lengths)))
    alone = {line.index for micro in micro_batches(lines(lengths), 100) for line in micro}
    assert alone == set(found)


@given(lengths=LENGTHS, budget=st.integers(10, 120), parts=st.integers(1, 4))
def test_micro_batches_stay_within_the_budget_or_are_one_row(
    lengths: list[int], budget: int, parts: int
) -> None:
    for micro in micro_batches(lines(lengths), budget, parts):
        assert len(micro) <= 1 or len(micro) * max(map(len, micro)) <= budget


@given(lengths=LENGTHS, parts=st.integers(1, 5))
def test_in_each_turn_the_parts_have_as_many_rows_but_for_one(
    lengths: list[int], parts: int
) -> None:
    micros = micro_batches(lines(lengths), 100, parts)
    for turn in (micros[first : first + parts] for first in range(0, len(micros), parts)):
        assert max(map(len, turn)) - min(map(len, turn)) <= 1
    rows = [sum(map(len, micros[part::parts])) for part in range(parts)]
    assert max(rows) - min(rows) <= 1


@given(lengths=LENGTHS, budget=st.integers(10, 120), overhead=st.integers(0, 60))
def test_no_other_cut_is_cheaper(lengths: list[int], budget: int, overhead: int) -> None:
    ascending, n = sorted(lengths), len(lengths)

    def cost(ends: Sequence[int]) -> float:
        parts = [ascending[a:b] for a, b in zip([0, *ends], ends)]
        if any(len(part) > 1 and len(part) * part[-1] > budget for part in parts):
            return float("inf")
        return sum(len(part) * part[-1] + overhead for part in parts)

    every = [(*inner, n) for k in range(n) for inner in combinations(range(1, n), k)]
    assert cost(cut(np.array(ascending), budget, overhead=overhead)) == min(map(cost, every))


@given(lengths=LENGTHS, budget=st.integers(10, 120), parts=st.integers(1, 4))
def test_packs_hold_each_row_once_within_the_budget_and_weigh_alike(
    lengths: list[int], budget: int, parts: int
) -> None:
    micros = packs(lines(lengths), budget, parts)
    found = Counter(line.index for micro in micros for line in micro)
    assert found == Counter(range(len(lengths))) and len(micros) % parts == 0
    tokens = [sum(map(len, micro)) for micro in micros]
    assert all(n <= budget or len(micro) == 1 for n, micro in zip(tokens, micros))
    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize(("batch_size", "longest"), [(128, 150), (64, 300), (16, 1000)])
def test_at_least_95_percent_of_the_computed_tokens_are_real(batch_size: int, longest: int) -> None:
    """Where a step has a few thousand tokens; in smaller ones padding is the lesser evil."""
    dealt = dealer(ragged(3000, 20, longest), batch_size)
    real = computed = 0
    for step in range(dealt.steps_per_epoch):
        for micro in micro_batches(dealt.step(step), 4096):
            real += sum(map(len, micro))
            computed += pad(micro).tokens_BT.numel()
    assert real / computed > 0.95


def test_without_windows_much_is_padding() -> None:
    """Negative control: the figure above is earned by sorting within windows."""
    lengths = ragged(6000)
    shares = []
    for a in range(0, len(lengths), 16):
        batch = lengths[a : a + 16]
        shares.append(sum(batch) / (len(batch) * max(batch)))
    assert np.mean(shares) < 0.7


def test_steps_are_alike_in_length() -> None:
    """Sorting must not make a step of short rows only: it would bias the gradient."""
    dealt = dealer(ragged(8192), 128)
    means = [np.mean([len(line) for line in dealt.step(s)]) for s in range(64)]
    assert np.std(means) < 30 and max(means) < 150 and min(means) > 30


def test_rows_are_read_lazily_and_once() -> None:
    class Reading(Sequence[Row]):
        def __init__(self) -> None:
            self.read: Counter[int] = Counter()

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            self.read[index] += 1
            return row(5)

    rows = Reading()
    dealt = Dealer(rows, partial(row_line, longest=10), 2, seed=0)
    dealt.step(0)
    dealt.step(WINDOW - 1)
    assert sum(rows.read.values()) == 2 * WINDOW
    for step in range(WINDOW, dealt.steps_per_epoch):
        dealt.step(step)
    assert set(rows.read.values()) == {1} and len(rows.read) == 1000


@given(n=st.integers(0, 200), seed=st.integers(0, 2**40))
def test_shuffled_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(shuffled(n, seed, 0)) == list(range(n))


def test_shuffled_is_even_handed_and_keeps_its_stream() -> None:
    firsts = Counter(int(shuffled(4, seed)[0]) for seed in range(2000))
    assert all(400 < firsts[i] < 600 for i in range(4))
    assert shuffled(8, 7, 0).tolist() == [int(i) for i in np.argsort(_raw(8, 7, 0))]


def _raw(n: int, *key: int) -> np.ndarray:
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(n)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        dealer([], 4)


@pytest.mark.parametrize(
    ("ids", "mask", "complaint"),
    [
        ([1, 2, 3], [False, True], "row 4: 3 tokens but a mask of 2"),
        ([1, 2, 3, 4, 5, 6], [False] + [True] * 5, "row 4 has 6 tokens.*at most 5: shorten it"),
        ([1, 2, 3], [False] * 3, "row 4 has no response token"),
        ([1, 2, 3], [True] * 3, "row 4: nothing predicts its first token"),
        ([], [], "row 4 has no response token"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(
    ids: list[int], mask: list[bool], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        row_line(Row(ids, mask), 4, longest=5)


def test_a_pair_names_its_answer() -> None:
    bad = Pair(row(4), Row([1, 2], [False, False]))
    with pytest.raises(ValueError, match="the rejected answer of pair 3 has no response token"):
        pair_line(bad, 3, longest=9)


def test_more_micro_batches_cost_something() -> None:
    """Rows of nearly one length stay together: OVERHEAD outweighs a little padding."""
    assert cut(np.array([50, 51, 52]), 8192) == [3]
    assert cut(np.array([10] * 20 + [400] * 20), 8192, overhead=OVERHEAD) == [20, 40]
