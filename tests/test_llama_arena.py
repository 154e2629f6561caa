"""Ranges never overlap, attention in parts is one softmax, packed prompts are as if alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import GROUPED, tiny_model
from torch import Tensor

from llama.arena import Arena, LaneDecode, PackedPrefill, Ranges
from llama.varlen import Spans, attend, merge

moves = st.lists(
    st.tuples(st.booleans(), st.integers(1, 12), st.booleans(), st.integers(0, 99)), max_size=60
)


@given(moves=moves, size=st.integers(0, 40))
def test_ranges_against_a_list_of_places(moves, size) -> None:
    ranges, taken, held = Ranges(size), [False] * size, []
    for take, count, from_above, which in moves:
        if take:
            free = [
                start for start in range(size - count + 1) if not any(taken[start : start + count])
            ]
            expected = (free[-1] if from_above else free[0]) if free else None
            assert ranges.take(count, from_above) == expected
            if expected is not None:
                taken[expected : expected + count] = [True] * count
                held.append((expected, count))
        elif held:
            start, count = held.pop(which % len(held))
            ranges.give(start, count)
            taken[start : start + count] = [False] * count
        assert ranges.left == taken.count(False)
        assert all(a[1] < b[0] for a, b in zip(ranges.free, ranges.free[1:]))
    for start, count in held:
        ranges.give(start, count)
    assert ranges.free == ([(0, size)] if size else [])


def spans(queries: list[int], starts: list[int], counts: list[int]) -> Spans:
    bounds = torch.tensor([0, *queries]).cumsum(0).int()
    return Spans(
        bounds, torch.tensor([*starts, 0]).int(), torch.tensor(counts).int(), max(queries), 99
    )


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("G", [1, 2, 4])
def test_parts_merge_into_one_softmax(G: int) -> None:
    """Three queries and two, each over keys that lie apart, one part of them without any keys."""
    q, k, v = noise(5, 4, 8), noise(30, G, 8), noise(30, G, 8)
    parts = [spans([3, 2], [0, 4], [4, 6]), spans([3, 2], [20, 3], [7, 0])]
    merged = merge([attend(q, k, v, part) for part in parts])
    for rows, places in ((slice(0, 3), [*range(4), *range(20, 27)]), (slice(3, 5), range(4, 10))):
        keys, values = (
            x[list(places)].repeat_interleave(4 // G, 1).transpose(0, 1) for x in (k, v)
        )
        whole = torch.nn.functional.scaled_dot_product_attention(
            q[rows].transpose(0, 1), keys, values
        )
        assert (merged[rows] - whole.transpose(0, 1)).abs().max() < 1e-5


def test_the_merge_needs_the_weights_of_the_parts() -> None:
    """Negative control: parts taken as equals."""
    q, k, v = noise(2, 4, 8), noise(9, 4, 8), noise(9, 4, 8)
    parts = [attend(q, k, v, spans([2], [0], [2])), attend(q, k, v, spans([2], [2], [7]))]
    [(whole, _)] = [attend(q, k, v, spans([2], [0], [9]))]
    equals = [(out, torch.zeros_like(lse)) for out, lse in parts]
    assert (merge(parts) - whole).abs().max() < 1e-5 < (merge(equals) - whole).abs().max()


@pytest.mark.parametrize("shared", [[], [7, 3, 9, 9, 1]], ids=len)
@torch.inference_mode()
def test_packed_prompts_and_what_follows_are_as_if_alone(shared: list[int]) -> None:
    model, prompts = tiny_model(), [[5, 9, 1, 30, 7], [8], [4, 4, 4, 4, 3]]
    arena = Arena(GROUPED, 60, torch.float32, torch.device("cpu"))
    arena.k_YAGD[:, :60], arena.v_YAGD[:, :60] = torch.nan, torch.nan
    if shared:
        place = arena.ranges.take(len(shared))
        model(torch.tensor([shared]), PackedPrefill(arena, [place], [len(shared)]))
        arena.shared = len(shared)
    starts = [20, 40, 10]  # holes between them, in no order
    tokens = torch.tensor([[token for prompt in prompts for token in prompt]])
    packed = PackedPrefill(arena, starts, [len(prompt) for prompt in prompts])
    for logits_TV, prompt in zip(model(tokens, packed)[0].split([5, 1, 5]), prompts):
        alone_TV = model(torch.tensor([shared + prompt]))[0, -len(prompt) :]
        assert (logits_TV - alone_TV).abs().max() < 1e-4
    texts = [shared + prompts[i] for i in (0, 0, 2, 1)]
    lanes = spans([2, 1, 1], [20, 10, 40], [5, 5, 1])
    start_B = torch.tensor([50, 30, 54, 46])
    for written in range(4):
        new = torch.tensor([11 + written, 12, 13, 14])
        texts = [[*text, int(token)] for text, token in zip(texts, new)]
        position_B = torch.tensor([len(text) - 1 for text in texts])
        step = LaneDecode(
            arena, start_B, torch.full((4,), written), position_B, 9, lanes, arena.everyone(4)
        )
        for logits_1V, text in zip(model(new[:, None], step), texts):
            assert (logits_1V - model(torch.tensor([text]))[0, -1:]).abs().max() < 1e-4


def test_the_walk_notices_a_prompt_that_lies_elsewhere() -> None:
    """Negative control of the test above: where a prompt is looked for is one place off."""
    with pytest.MonkeyPatch.context() as patch:
        attends = LaneDecode.__call__

        def off(this: LaneDecode, *args: object) -> Tensor:
            this.spans[1].start_I1.add_(1)
            out = attends(this, *args)  # type: ignore[arg-type]
            this.spans[1].start_I1.sub_(1)
            return out

        patch.setattr(LaneDecode, "__call__", off)
        with pytest.raises(AssertionError):
            test_packed_prompts_and_what_follows_are_as_if_alone([])
