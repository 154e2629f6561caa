"""One sample as it grows: at every token what `generate` will have written."""

from dataclasses import replace

import pytest
from test_sampling_engine import DECODING, MODEL, ragged
from tiny_llama import GROUPED, tiny_model

from sampling.batch import Decoding, Sample
from sampling.engine import generate, stream
from sampling.spread import Request


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_streamed_sample_grows_into_the_generated_one(temperature: float) -> None:
    decoding = replace(DECODING, temperature=temperature)
    for request in [*ragged(12), Request("full", [5] * GROUPED.max_seq_len)]:
        [[whole]] = generate(MODEL, [request], decoding, seed=1)
        grown = list(stream(MODEL, request, decoding, seed=1))
        assert grown[-1] == whole
        for n, sample in enumerate(grown[:-1], start=1):
            assert sample == Sample(whole.token_ids[:n], finished=False)
    with pytest.raises(ValueError, match="empty prompt"):
        next(stream(MODEL, Request("none", []), DECODING, seed=0))


def test_a_stream_that_is_left_gives_the_mode_back() -> None:
    model = tiny_model().train()
    growing = stream(model, ragged(1)[0], Decoding(0.8, 0.9, 24), seed=0)
    next(growing)
    assert not model.training
    growing.close()
    assert model.training
