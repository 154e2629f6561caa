"""A pair on one line: its two answers share the prompt and nothing else, nor do lines in a row."""

from typing import Any

import numpy as np
import pytest
import torch
from dpo_runs import alone, pairs, rows
from tiny_llama import tiny_model

from dpo import Pair, Row, packed
from dpo.descent import forward_logps
from dpo.fork import forked
from dpo.lines import pack, pad, pair_line, row_line
from dpo.packed import Packed
from llama.attention import Attend, CausalRows

CPU = torch.device("cpu")
both_layouts = pytest.mark.parametrize("lay", [pad, pack])


@both_layouts
def test_a_pair_on_one_line_equals_its_rows_alone(lay: Any) -> None:
    """Values and gradients, though the prompt is read once."""
    model = tiny_model().double()
    some = pairs(8)
    lines = [pair_line(pair, i, 99) for i, pair in enumerate(some)]
    assert sum(map(len, lines)) < sum(len(p.chosen.ids) + len(p.rejected.ids) for p in some)
    separate = torch.stack([alone(model, row) for p in some for row in (p.chosen, p.rejected)])
    together = forward_logps(model, lines, CPU, lay)
    torch.testing.assert_close(together, separate, rtol=1e-6, atol=1e-6)
    weights = torch.linspace(-1, 1, len(separate), dtype=torch.float64)
    expected = torch.autograd.grad((separate * weights).sum(), list(model.parameters()))
    found = torch.autograd.grad((together * weights).sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@both_layouts
def test_the_chosen_answer_does_not_see_the_rejected_one_nor_the_other_way_round(lay: Any) -> None:
    model = tiny_model()
    pair = Pair(Row([1, 5, 6, 7, 8], [False, False, True, True, True]),
                Row([1, 5, 9, 10], [False, False, True, True]))  # fmt: skip
    chosen, rejected = forward_logps(model, [pair_line(pair, 0, 99)], CPU, lay)
    other = Pair(pair.chosen, Row([1, 5, 11, 12], [False, False, True, True]))
    chosen_now, rejected_now = forward_logps(model, [pair_line(other, 0, 99)], CPU, lay)
    assert chosen_now == chosen and rejected_now != rejected
    other = Pair(Row([1, 5, 6, 17, 18], pair.chosen.is_response), pair.rejected)
    chosen_now, rejected_now = forward_logps(model, [pair_line(other, 0, 99)], CPU, lay)
    assert chosen_now != chosen and rejected_now == rejected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [([1, 5, 6], [1, 5, 6, 7, 8]), ([1, 5, 6, 7, 8], [1, 5, 6]), ([1, 5, 6], [1, 5, 6])],
)
@both_layouts
def test_an_answer_that_begins_with_the_other(
    lay: Any, chosen: list[int], rejected: list[int]
) -> None:
    model = tiny_model()
    pair = Pair(*(Row(ids, [False, False] + [True] * (len(ids) - 2)) for ids in (chosen, rejected)))
    found = forward_logps(model, [pair_line(pair, 0, 99)], CPU, lay)
    expected = torch.stack([alone(model, pair.chosen), alone(model, pair.rejected)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def packed_and_alone() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of rows and pairs in one row, and of each answer with nothing beside it."""
    model, some, others = tiny_model(), rows(3), pairs(3)
    lines = [row_line(row, i, 99) for i, row in enumerate(some)]
    lines[1:1] = [pair_line(pair, i, 99) for i, pair in enumerate(others)]
    answers = [some[0], *(row for p in others for row in (p.chosen, p.rejected)), *some[1:]]
    batch = pack(lines)
    assert batch.tokens_BT.shape == (1, sum(map(len, lines)))
    expected = torch.stack([alone(model, row) for row in answers])
    return forward_logps(model, lines, CPU, pack), expected


def test_lines_in_a_row_equal_lines_alone() -> None:
    """Rows, which do not fork, among pairs, which do."""
    torch.testing.assert_close(*packed_and_alone(), rtol=1e-5, atol=1e-5)


def test_a_line_that_saw_its_neighbour_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law above can fail: all as one causal row, each token at its own position."""
    monkeypatch.setattr(Packed, "__call__", CausalRows.__call__)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(*packed_and_alone(), rtol=1e-5, atol=1e-5)


def test_no_lines_in_a_row() -> None:
    """A part of a step may be empty: a token is computed, of which nothing is scored."""
    assert forward_logps(tiny_model(), [], CPU, pack).shape == (0,)


def output_and_gradients(attend: Attend, rows: int, heads: int, like: torch.dtype) -> list[Any]:
    """Of random queries, keys and values of 2 heads; a gradient for each token of the output."""
    T = len(attend.positions_BT.flatten()) // rows
    draw = torch.Generator().manual_seed(0)
    shapes = [(rows, T, n, 8) for n in (heads, 2, 2, heads)]
    *qkv, grad = (torch.randn(shape, generator=draw, dtype=like) for shape in shapes)
    leaves = [x.requires_grad_() for x in qkv]
    out = attend(0, *leaves)
    return [out, *torch.autograd.grad(out, leaves, grad[:, : out.shape[1]])]


FORKS = [(5, 4, 3), (2, 1, 6), (12, 0, 0), (4, 8, 0), (4, 0, 8), (1, 2, 9), (0, 5, 7)]


every_way = pytest.mark.parametrize("overhead", [-(2**12), 0, 8, packed.OVERHEAD])


@every_way
@pytest.mark.parametrize("heads", [2, 4, 6])
@pytest.mark.parametrize("like", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_in_a_row_is_that_of_lines_side_by_side(
    heads: int, like: torch.dtype, overhead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and the gradients of queries, keys and values, whatever the type, the groups, and how
    lines are cut."""
    monkeypatch.setattr(packed, "OVERHEAD", overhead)
    whole = [fork for fork in FORKS if sum(fork) == 12]
    padded = output_and_gradients(forked(whole, 12), len(whole), heads, like)
    in_a_row = output_and_gradients(Packed(whole), 1, heads, like)
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[like]
    for found, expected in zip(in_a_row, padded):
        expected = expected.flatten(0, 1)[None]
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    positions = forked(whole, 12).positions_BT.flatten()
    torch.testing.assert_close(Packed(whole).positions_BT.flatten(), positions)


def test_nothing_of_a_piece_is_kept_but_its_log_sum_exp() -> None:
    """For the backward pass the row's q, k, v and output; a mask is the batch's, for all blocks."""
    attend, kept = Packed(FORKS), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output_and_gradients(attend, 1, 4, torch.float32)
    T = attend.positions_BT.numel()
    assert sum(map(sum, FORKS)) == T
    assert sum(kept.values()) == 4 * T * ((4 + 2 + 2 + 4) * 8 + 4)


def cut(fork: tuple[int, int, int]) -> list[tuple[int, int, bool]]:
    """Queries, keys, and whether some are left out, of each piece of a line that asks for all."""
    (pieces,) = Packed([fork]).lines
    return [(piece.N, piece.M, piece.without is not None) for piece in pieces]


def test_a_line_is_cut_by_the_cheapest_way() -> None:
    """One piece while it is short; the chosen answer beside the rejected one, or the prompt; and
    its keys left out where they are many."""
    assert cut((400, 0, 0)) == [(400, 400, False)]
    assert cut((27, 15, 15)) == [(57, 57, False)]
    assert cut((60, 40, 40)) == [(60, 60, False), (80, 140, False)]
    assert cut((20, 60, 60)) == [(80, 80, False), (60, 140, False)]
    assert cut((100, 300, 300)) == [(400, 400, False), (300, 700, True)]


ASKED = [(5, 4, 3), (2, 1, 6), (12, 0, 0), (4, 0, 8)]
ASKING = [[[4, 5, 7], [4, 9, 11]], [[2], [1, 4, 8]], [[0, 1, 2]], [[1, 2], [3, 11]]]


@every_way
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("like", [torch.float64, torch.float32, torch.bfloat16])
def test_the_wanted_queries_see_what_they_see_among_all(
    heads: int, like: torch.dtype, overhead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients, with gaps between them; who predicts a token of both asks twice."""
    monkeypatch.setattr(packed, "OVERHEAD", overhead)
    asking = [[np.array(places) for places in line] for line in ASKING]
    starts = np.cumsum([0, *map(sum, ASKED)])
    places = [places + start for line, start in zip(asking, starts) for places in line]
    wanted_N = torch.from_numpy(np.concatenate(places))

    class Among(Packed):
        def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
            return super().__call__(layer, q, k, v)[:, wanted_N]

    class Alone(Packed):
        def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
            return self.wanted(layer, q[:, wanted_N], k, v)

    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[like]
    found, expected = (
        output_and_gradients(kind(ASKED, asking), 1, heads, like) for kind in (Alone, Among)
    )
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


def test_the_last_block_asks_for_scored_tokens_alone() -> None:
    """Of a packed row's queries; keys and values are all tokens'. Other blocks ask for all."""
    model, lines = tiny_model(), [pair_line(pair, i, 99) for i, pair in enumerate(pairs(3))]
    batch, counts = pack(lines), dict[str, int]()
    for at, block in ((0, model.layers[0]), (1, model.layers[-1])):
        for name in ("wq", "wk", "wv"):
            linear = getattr(block.attention, name)
            linear.register_forward_hook(
                lambda _, inputs, __, key=f"{name} {at}": counts.update(
                    {key: inputs[0].flatten(0, -2).shape[0]}
                )
            )
    forward_logps(model, lines, CPU, pack)
    T, scored = batch.tokens_BT.numel(), len(batch.source_N)
    assert scored < T
    assert counts == {
        **dict.fromkeys(("wq 0", "wk 0", "wv 0", "wk 1", "wv 1"), T), "wq 1": scored,
    }  # fmt: skip
