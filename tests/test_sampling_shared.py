"""What all prompts of a call begin with: found by token ids, read once, and nothing changes."""

from dataclasses import replace

import pytest
import torch
from test_sampling_engine import DECODING, by_the_book, ragged, written

from sampling import batch, engine
from sampling.spread import Request


def templated(count: int, n: int, header: int) -> list[Request]:
    """Requests that begin with the same tokens."""
    before = [(7 * place) % 400 for place in range(header)]
    return [replace(one, token_ids=before + one.token_ids) for one in ragged(count, n)]


@torch.inference_mode()
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(monkeypatch) -> None:
    requests, read = templated(20, 3, header=50), []
    share = batch.Batch.share
    monkeypatch.setattr(
        batch.Batch, "share", lambda this, prefix: (read.append(prefix), share(this, prefix))[1]
    )
    among = written(requests, slots=7)
    assert read == [requests[0].token_ids[:50]]
    for request in requests[::4]:
        assert among[request.id] == [by_the_book(request, k, DECODING, 1) for k in range(3)]
    monkeypatch.setattr(engine, "LEAST_SHARED", 1000)
    assert written(requests, slots=7) == among
    assert len(read) == 1


@pytest.mark.parametrize(
    ("prompts", "common"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 3),
        ([[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4, 5]], 2),  # the shortest keeps its last token
        ([[1, 2, 3], [1, 2, 4], [1, 5, 3]], 0),  # one token: too few
        ([[2, 2, 3], [1, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 3]], 0),  # one prompt, asked twice: its samples share it already
        ([[1, 2, 3]], 0),
    ],
)
def test_what_is_shared(prompts: list[list[int]], common: int, monkeypatch) -> None:
    monkeypatch.setattr(engine, "LEAST_SHARED", 2)
    assert engine._common(prompts) == common
