"""Products by oneDNN: the same numbers and gradients but for rounding, said by shapes alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpo.blocks import running_blocks
from dpo.descent import forward_logps
from dpo.lines import Pair, Row, pack, pair_line
from llama import PRESETS, Llama, product
from llama.lora import Lora, LoraLinear
from sampling import Decoding, Request, generate

pytestmark = pytest.mark.skipif(product.ONEDNN is None, reason="torch without oneDNN")

CONFIG = replace(PRESETS["tiny"], vocab_size=90, n_kv_heads=2)
CPU = torch.device("cpu")


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """All products of any size; the list tells which weights were multiplied by it."""
    multiplied: list[Any] = []
    usual = product._by_onednn

    def spied(x_C: Tensor, weight_FC: Tensor) -> Tensor:
        multiplied.append(tuple(weight_FC.shape))
        return usual(x_C, weight_FC)

    monkeypatch.setattr(product, "_by_onednn", spied)
    monkeypatch.setattr(product, "LARGE", 0)
    yield multiplied


def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_for_onednn", lambda x_C, weight_FC: False)


def model(tied: bool = True) -> Llama:
    made = Llama(replace(CONFIG, tie_embeddings=tied))
    made.init_weights(torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("shape", [(1, 512), (3, 1, 512), (2, 70, 512), (0, 512)])
@pytest.mark.parametrize("sampling", [False, True])
def test_numbers_are_those_of_linear(shape: tuple[int, ...], sampling: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw)
    weight = torch.randn(600, 512, generator=draw)
    assert product._for_onednn(x, weight)
    with torch.inference_mode(sampling):
        found = product.product(x, weight)
    torch.testing.assert_close(found, F.linear(x, weight), atol=2e-4, rtol=1e-5)
    assert found.shape == (*shape[:-1], 600)


@pytest.mark.parametrize("shape", [(1, 64), (2, 70, 64), (0, 64)])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients_are_those_of_linear(
    shape: tuple[int, ...], wanted: tuple[bool, bool], by_onednn: list[Any]
) -> None:
    """Of x, of the weight, of both; a stranger's gradient need not lie in memory in order."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=draw), torch.randn(48, 64, generator=draw)
    back = torch.randn((48, *shape[:-1]), generator=draw).movedim(0, -1)
    found = []
    for multiply in (product.product, F.linear):
        leaves = [x.clone().requires_grad_(wanted[0]), weight.clone().requires_grad_(wanted[1])]
        y = multiply(*leaves)
        y.backward(back)
        found.append([y, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    assert by_onednn == [(48, 64), (64, 48)][: 1 + wanted[0]] and len(found[0]) == 1 + sum(wanted)
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_shapes_alone_say_which_library_multiplies() -> None:
    for rows in (3, 2**15):
        x, weight = torch.zeros(rows, 512), torch.zeros(600, 512)
        assert product._for_onednn(x, weight)  # large
        assert not product._for_onednn(x.bfloat16(), weight.bfloat16())
        assert not product._for_onednn(x.double(), weight.double())
        assert product._for_onednn(x, weight[:100]) == (rows == 2**15)  # much


def test_a_reference_is_what_trains_against_it_to_the_last_bit() -> None:
    """Negative control: by MKL it would not be."""
    draw = torch.Generator().manual_seed(0)
    linear, x = product.Linear(344, 128), torch.randn(400, 344, generator=draw)
    with torch.no_grad():
        reference = linear(x)
    trained = linear(x)
    assert trained.requires_grad and torch.equal(trained, reference)
    assert not torch.equal(trained, F.linear(x, linear.weight))


def test_of_x_nothing_is_kept_for_a_frozen_weight(by_onednn: list[Any]) -> None:
    linear, x = product.Linear(64, 48), torch.randn(5, 64, requires_grad=True)
    adapted = LoraLinear(linear, Lora(4, 8.0))
    for frozen in (False, True):
        linear.weight.requires_grad_(not frozen)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.data_ptr()), lambda _: x
        ):
            y = linear(x)
        assert (x.data_ptr() in kept) is not frozen and y.requires_grad
    assert torch.equal(adapted(x), linear(x)) and (48, 64) in by_onednn  # B is zero at first


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_a_model_learns_the_same(how: str, by_onednn: list[Any], monkeypatch: Any) -> None:
    """Gradients of pairs, whatever is computed again."""
    answers = [Row([1, 5, 6, *ids], [False] * 3 + [True] * len(ids)) for ids in ([7, 8, 2], [9])]
    lines = [pair_line(Pair(*answers), 0, 64)]
    found = []
    for plain in (False, True):
        trained = model()
        with running_blocks(trained, how):
            forward_logps(trained, lines, CPU, pack).sum().backward()
        found.append([weight.grad for weight in trained.parameters()])
        if not plain:
            assert len(by_onednn) > 7 * CONFIG.n_layers * 2  # forwards and backwards
            never(monkeypatch)
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_samples_are_the_same(tied: bool, by_onednn: list[Any], monkeypatch: Any) -> None:
    """Greedy ones, of a model with fewer key-value heads, and their log-probabilities."""
    requests = [Request(str(i), [1, *range(5, 6 + 3 * i)], 2) for i in range(6)]
    how = Decoding(temperature=0, max_new_tokens=12, logps=True)
    found = generate(model(tied), requests, how, seed=0, processes=1)
    kinds = set(by_onednn)
    dim, ffn_dim = CONFIG.dim, CONFIG.ffn_dim
    assert {(90, dim), (dim, ffn_dim), (dim, dim)} <= kinds
    never(monkeypatch)
    plain = generate(model(tied), requests, how, seed=0, processes=1)
    for [some, others] in zip(found, plain):
        for one, other in zip(some, others):
            assert one.token_ids == other.token_ids
            torch.testing.assert_close(
                torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-5, rtol=1e-5
            )
