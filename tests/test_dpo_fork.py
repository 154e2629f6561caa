"""A pair on one line: its two answers share the prompt and nothing else."""

import pytest
import torch
from dpo_runs import alone, pairs
from tiny_llama import tiny_model

from dpo import Pair, Row
from dpo.descent import forward_logps
from dpo.lines import pair_line


def test_a_pair_on_one_line_equals_its_rows_alone() -> None:
    """Values and gradients, though the prompt is read once."""
    model = tiny_model().double()
    some = pairs(8)
    lines = [pair_line(pair, i, 99) for i, pair in enumerate(some)]
    assert sum(map(len, lines)) < sum(len(p.chosen.ids) + len(p.rejected.ids) for p in some)
    separate = torch.stack([alone(model, row) for p in some for row in (p.chosen, p.rejected)])
    together = forward_logps(model, lines, torch.device("cpu"))
    torch.testing.assert_close(together, separate, rtol=1e-6, atol=1e-6)
    weights = torch.linspace(-1, 1, len(separate), dtype=torch.float64)
    expected = torch.autograd.grad((separate * weights).sum(), list(model.parameters()))
    found = torch.autograd.grad((together * weights).sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_chosen_answer_does_not_see_the_rejected_one_nor_the_other_way_round() -> None:
    model = tiny_model()
    pair = Pair(Row([1, 5, 6, 7, 8], [False, False, True, True, True]),
                Row([1, 5, 9, 10], [False, False, True, True]))  # fmt: skip
    device = torch.device("cpu")
    chosen, rejected = forward_logps(model, [pair_line(pair, 0, 99)], device)
    other = Pair(pair.chosen, Row([1, 5, 11, 12], [False, False, True, True]))
    chosen_now, rejected_now = forward_logps(model, [pair_line(other, 0, 99)], device)
    assert chosen_now == chosen and rejected_now != rejected
    other = Pair(Row([1, 5, 6, 17, 18], pair.chosen.is_response), pair.rejected)
    chosen_now, rejected_now = forward_logps(model, [pair_line(other, 0, 99)], device)
    assert chosen_now != chosen and rejected_now == rejected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [([1, 5, 6], [1, 5, 6, 7, 8]), ([1, 5, 6, 7, 8], [1, 5, 6]), ([1, 5, 6], [1, 5, 6])],
)
def test_an_answer_that_begins_with_the_other(chosen: list[int], rejected: list[int]) -> None:
    model = tiny_model()
    pair = Pair(*(Row(ids, [False, False] + [True] * (len(ids) - 2)) for ids in (chosen, rejected)))
    found = forward_logps(model, [pair_line(pair, 0, 99)], torch.device("cpu"))
    expected = torch.stack([alone(model, pair.chosen), alone(model, pair.rejected)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
