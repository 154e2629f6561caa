"""Products by oneDNN: the same numbers but for rounding, in sampling only."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llama import PRESETS, Llama, product
from sampling import Decoding, Request, generate

pytestmark = pytest.mark.skipif(not product._has_onednn(), reason="torch without oneDNN")


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """All products of any size; the list tells which weights were multiplied by it."""
    asked: list[Any] = []

    def spied(weight_FC: Tensor) -> bool:
        asked.append(tuple(weight_FC.shape))
        return True

    monkeypatch.setattr(product, "_for_onednn", spied)
    yield asked


@pytest.mark.parametrize("shape", [(1, 512), (3, 1, 512), (2, 70, 512), (0, 512)])
def test_numbers_are_those_of_linear(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw)
    weight = torch.randn(600, 512, generator=draw)
    with torch.inference_mode():
        assert product._for_onednn(weight)
        found = product.product(x, weight)
    torch.testing.assert_close(found, F.linear(x, weight), atol=2e-4, rtol=1e-5)
    assert found.shape == (*shape[:-1], 600)


def test_training_and_its_reference_multiply_as_ever(by_onednn: list[Any]) -> None:
    linear = product.Linear(512, 600)
    x = torch.randn(4, 512)
    with torch.no_grad():
        reference = linear(x)
    trained = linear(x)
    assert trained.requires_grad and torch.equal(trained, reference) and not by_onednn


def test_other_weights_are_multiplied_as_ever() -> None:
    large = torch.zeros(600, 512)
    for weight in (large[:100], large.bfloat16(), large.double()):
        assert not product._for_onednn(weight)


@pytest.mark.parametrize("tied", [False, True])
def test_samples_are_the_same(tied: bool, by_onednn: list[Any], monkeypatch: Any) -> None:
    """Greedy ones, of a model with fewer key-value heads, and their log-probabilities."""
    config = replace(PRESETS["tiny"], vocab_size=90, n_kv_heads=2, tie_embeddings=tied)
    model = Llama(config)
    model.init_weights(torch.Generator().manual_seed(0))
    requests = [Request(str(i), [1, *range(5, 6 + 3 * i)], 2) for i in range(6)]
    how = Decoding(temperature=0, max_new_tokens=12, logps=True)
    found = generate(model, requests, how, seed=0, processes=1)
    kinds = set(by_onednn)
    assert {(90, config.dim), (config.dim, config.ffn_dim), (config.dim, config.dim)} <= kinds
    monkeypatch.setattr(product, "_for_onednn", lambda weight_FC: False)
    plain = generate(model, requests, how, seed=0, processes=1)
    for [some, others] in zip(found, plain):
        for one, other in zip(some, others):
            assert one.token_ids == other.token_ids
            torch.testing.assert_close(
                torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-5, rtol=1e-5
            )
