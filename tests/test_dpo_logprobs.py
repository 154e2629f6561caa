"""Shift, mask and sum of response log-probabilities; bugs seen elsewhere are made and caught."""

import math
from collections.abc import Callable

import pytest
import torch
from dpo_runs import alone, rows
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import tiny_model
from torch import Tensor

from dpo.descent import forward_logps
from dpo.lines import pad, row_line
from dpo.logprobs import chunked_logps, response_logps

# B rows, T tokens, V vocabulary

Logps = Callable[[Tensor, Tensor, Tensor], Tensor]


def rows_of_text(
    B: int = 3, T: int = 9, V: int = 11, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits and tokens; responses of different lengths behind a prompt of three tokens."""
    draw = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(B, T, V, generator=draw, dtype=torch.float64)
    tokens_BT = torch.randint(V, (B, T), generator=draw)
    place_T = torch.arange(T)
    end_B = torch.randint(4, T + 1, (B, 1), generator=draw)
    return logits_BTV, tokens_BT, (place_T >= 3) & (place_T < end_B)


def one_at_a_time(logits_BTV: Tensor, tokens_BT: Tensor, is_response_BT: Tensor) -> list[float]:
    """The definition: for each response token t, log softmax of the logits at t−1, at the token."""
    sums = []
    for logits_TV, tokens, mask in zip(logits_BTV, tokens_BT.tolist(), is_response_BT.tolist()):
        total = 0.0
        for t in range(1, len(tokens)):
            if mask[t]:
                scores = logits_TV[t - 1].tolist()
                total += scores[tokens[t]] - math.log(sum(map(math.exp, scores)))
        sums.append(total)
    return sums


def perfect(tokens_BT: Tensor, V: int = 11) -> Tensor:
    """Logits that are sure of each next token."""
    following = torch.roll(tokens_BT, -1, dims=1)
    return 1e4 * torch.nn.functional.one_hot(following, V).double()


# What public implementations got wrong
def unshifted(logits_BTV: Tensor, tokens_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    logp_BT = logits_BTV.log_softmax(-1).gather(2, tokens_BT[..., None])[..., 0]
    return (logp_BT * is_response_BT).sum(1)


def averaged(logits_BTV: Tensor, tokens_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    return response_logps(logits_BTV, tokens_BT, is_response_BT) / is_response_BT.sum(1)


def inverted(logits_BTV: Tensor, tokens_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    return response_logps(logits_BTV, tokens_BT, ~is_response_BT)


def mask_late(logits_BTV: Tensor, tokens_BT: Tensor, is_response_BT: Tensor) -> Tensor:
    return response_logps(logits_BTV, tokens_BT, is_response_BT.roll(1, dims=1))


WRONG = (unshifted, averaged, inverted, mask_late)


def fits_definition(logps: Logps) -> bool:
    text = rows_of_text()
    return logps(*text).tolist() == pytest.approx(one_at_a_time(*text), abs=1e-10)


def scores_a_perfect_predictor_0(logps: Logps) -> bool:
    _, tokens_BT, is_response_BT = rows_of_text()
    return bool(logps(perfect(tokens_BT), tokens_BT, is_response_BT).abs().max() < 1e-9)


def ignores_what_is_not_response(logps: Logps) -> bool:
    """Another prompt and other padding, before given logits, change nothing."""
    logits_BTV, tokens_BT, is_response_BT = rows_of_text()
    other_BT = torch.where(is_response_BT, tokens_BT, (tokens_BT + 1) % 11)
    was, now = (logps(logits_BTV, t, is_response_BT) for t in (tokens_BT, other_BT))
    return bool(torch.equal(was, now))


def adds_up(logps: Logps) -> bool:
    """The whole response = its first half + its second half."""
    logits_BTV, tokens_BT, is_response_BT = rows_of_text(T=20)
    first_BT = is_response_BT & (torch.arange(20) < 6)
    whole, first, rest = (
        logps(logits_BTV, tokens_BT, mask)
        for mask in (is_response_BT, first_BT, is_response_BT & ~first_BT)
    )
    return bool(torch.allclose(whole, first + rest))


LAWS = (fits_definition, scores_a_perfect_predictor_0, ignores_what_is_not_response, adds_up)


@pytest.mark.parametrize("law", LAWS)
def test_law(law: Callable[[Logps], bool]) -> None:
    assert law(response_logps)


@pytest.mark.parametrize("wrong", WRONG)
def test_each_known_mistake_breaks_a_law(wrong: Logps) -> None:
    assert not all(law(wrong) for law in LAWS)


@given(seed=st.integers(0, 10_000), B=st.integers(1, 4), T=st.integers(4, 12))
def test_definition_at_any_size(seed: int, B: int, T: int) -> None:
    text = rows_of_text(B, T, 5, seed)
    assert response_logps(*text).tolist() == pytest.approx(one_at_a_time(*text), abs=1e-10)


def test_a_first_token_and_an_empty_mask_score_nothing() -> None:
    logits_BTV, tokens_BT, is_response_BT = rows_of_text()
    first_BT = torch.zeros_like(is_response_BT)
    first_BT[:, 0] = True
    assert response_logps(logits_BTV, tokens_BT, first_BT).tolist() == [0, 0, 0]


def test_integer_masks_are_masks() -> None:
    logits_BTV, tokens_BT, is_response_BT = rows_of_text()
    expected = response_logps(logits_BTV, tokens_BT, is_response_BT)
    assert torch.equal(response_logps(logits_BTV, tokens_BT, is_response_BT.long()), expected)


def test_sums_in_fp32_whatever_the_logits() -> None:
    logits_BTV, tokens_BT, is_response_BT = rows_of_text(2, 700)
    rounded_BTV = logits_BTV.bfloat16()
    logp_B = response_logps(rounded_BTV, tokens_BT, is_response_BT)
    exact_B = response_logps(rounded_BTV.double(), tokens_BT, is_response_BT)
    assert logp_B.dtype == torch.float32
    torch.testing.assert_close(logp_B.double(), exact_B, rtol=1e-6, atol=0)


def test_infinities_outside_the_response_do_no_harm() -> None:
    logits_BTV, tokens_BT, is_response_BT = rows_of_text()
    expected = response_logps(logits_BTV, tokens_BT, is_response_BT)
    scores_BT = torch.roll(is_response_BT, -1, dims=1)
    poisoned = torch.where(scores_BT[..., None], logits_BTV, torch.nan).requires_grad_()
    logp_B = response_logps(poisoned, tokens_BT, is_response_BT)
    assert torch.equal(logp_B, expected)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    logits_BTV, tokens_BT, is_response_BT = rows_of_text()
    with pytest.raises(ValueError, match=r"\(3, 8, 11\), \(3, 9\), \(3, 9\)"):
        response_logps(logits_BTV[:, 1:], tokens_BT, is_response_BT)


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 1000])
def test_chunked_equals_full_in_value_and_gradient(chunk: int) -> None:
    draw = torch.Generator().manual_seed(0)
    B, T, C, V = 3, 8, 6, 13
    hidden_BTC = torch.randn(B, T, C, generator=draw, dtype=torch.float64, requires_grad=True)
    weight_VC = torch.randn(V, C, generator=draw, dtype=torch.float64, requires_grad=True)
    tokens_BT = torch.randint(V, (B, T), generator=draw)
    is_response_BT = torch.arange(T) >= torch.tensor([[3], [7], [1]])

    full_B = response_logps(hidden_BTC @ weight_VC.T, tokens_BT, is_response_BT)
    b_N, t_N = is_response_BT.nonzero(as_tuple=True)
    chunked_B = chunked_logps(
        hidden_BTC.flatten(0, 1)[b_N * T + t_N - 1],
        lambda hidden: hidden @ weight_VC.T,
        tokens_BT[b_N, t_N],
        is_response_BT.sum(1),
        chunk,
    )
    torch.testing.assert_close(chunked_B, full_B, rtol=1e-12, atol=1e-12)
    weights_B = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    inputs = (hidden_BTC, weight_VC)
    expected = torch.autograd.grad((full_B * weights_B).sum(), inputs)
    found = torch.autograd.grad((chunked_B * weights_B).sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_chunks_never_hold_all_logits() -> None:
    largest = 0

    def project(hidden_NC: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, hidden_NC.shape[0])
        return hidden_NC @ torch.ones(4, 50)

    hidden_NC = torch.randn(40, 4, requires_grad=True)
    logp_S = chunked_logps(hidden_NC, project, torch.arange(40), torch.tensor([15, 25]), 7)
    logp_S.sum().backward()
    assert largest == 7


def test_lines_side_by_side_equal_rows_alone() -> None:
    model = tiny_model()
    some = rows(7)
    lines = [row_line(row, i, 99) for i, row in enumerate(some)]
    expected = torch.stack([alone(model, row) for row in some])
    found = forward_logps(model, lines, torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing() -> None:
    """Other padding tokens, and more of them."""
    model = tiny_model()
    batch = pad([row_line(row, i, 99) for i, row in enumerate(rows(5))])
    lengths = torch.tensor([len(row.ids) for row in rows(5)])
    padding_BT = torch.arange(batch.tokens_BT.shape[1]) >= lengths[:, None]
    assert padding_BT.any()
    hidden = {}
    for filler in (0, 7):
        tokens_BT = torch.where(padding_BT, filler, batch.tokens_BT)
        hidden[filler] = model(tokens_BT, head=lambda hidden_BTC, _: hidden_BTC.flatten(0, 1))
    was, now = (hidden[filler][batch.source_N] for filler in (0, 7))
    assert torch.equal(was, now)
    assert not torch.equal(hidden[0], hidden[7])  # negative control: the padding itself differs


def test_targets_are_the_response_tokens_and_nothing_else() -> None:
    """What is trained on is born with the tokens: no prompt, no padding; the closing token is."""
    some = rows(6)
    batch = pad([row_line(row, i, 99) for i, row in enumerate(some)])
    expected = [i for row in some for i, kept in zip(row.ids, row.is_response) if kept]
    assert batch.target_N.tolist() == expected
    assert batch.count_S.tolist() == [sum(row.is_response) for row in some]
    before = batch.tokens_BT.flatten()[batch.source_N + 1]
    assert torch.equal(before, batch.target_N)


def test_no_lines_give_no_numbers_but_a_gradient() -> None:
    """A rank without work still goes forward and backward with the others."""
    model = tiny_model()
    logp_S = forward_logps(model, [], torch.device("cpu"))
    assert logp_S.shape == (0,)
    logp_S.sum().backward()
    grads = [weight.grad for weight in model.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)
