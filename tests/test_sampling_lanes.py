"""The GPU's way of sampling, on the CPU: the same laws, and the same samples."""

from dataclasses import replace

import pytest
import torch
from test_sampling_engine import (  # noqa: F401  these laws hold for lanes too
    DECODING,
    MODEL,
    ragged,
    test_a_request_alone_is_itself_in_any_company,
    test_greedy_tokens_are_those_of_transformers,
    test_logps_are_those_of_a_forward_pass_over_the_whole_text,
    test_nan_in_a_weight_raises_and_the_mode_is_restored,
    test_no_requests_no_samples,
    test_samples_are_those_of_the_plain_algorithm,
    test_samples_of_one_request_are_those_of_many,
    test_seed_and_id_change_the_samples_and_nothing_else_does,
    test_stop_tokens_and_budgets,
    test_the_context_is_the_limit,
    test_what_cannot_be_served_is_refused_by_name_and_the_rest_goes_on,
    written,
)
from test_sampling_memory import test_out_of_memory_halves_the_slots  # noqa: F401
from test_sampling_parts import (  # noqa: F401
    test_a_part_is_given_out_while_the_next_is_in_progress,
    test_refused_requests_have_their_place_in_their_part,
    test_the_samples_are_those_of_one_part,
    test_when_memory_runs_out_no_part_is_given_twice,
    test_whoever_stops_early_leaves_the_model_as_it_was,
)
from test_sampling_shared import templated
from tiny_llama import GROUPED, tiny_model

from llama.arena import Arena
from llama.cache import token_bytes
from sampling import batch, board, engine, lanes
from sampling.spread import Progress


@pytest.fixture(autouse=True)
def in_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_in_lanes", lambda *_: True)

    def no_batch(*args: object) -> None:
        raise AssertionError("this is to be sampled in lanes")

    monkeypatch.setattr(batch.Batch, "step", no_batch)


@pytest.mark.parametrize("header", [0, 50])
@pytest.mark.parametrize("slots", [7, 40, 1000])
def test_lanes_write_what_cohorts_write(header: int, slots: int, monkeypatch) -> None:
    requests = templated(30, 3, header)
    made = written(requests, slots=slots)
    monkeypatch.undo()
    assert made == written(requests, slots=slots)


@pytest.mark.parametrize("look", [1, 3, 100])
def test_when_the_host_looks_changes_nothing(look: int, monkeypatch) -> None:
    requests = ragged(20, n=3)
    among = written(requests)
    monkeypatch.setattr(lanes, "LOOK", look)
    monkeypatch.setattr(lanes, "PREFILL_TOKENS", 50)
    assert written(requests) == among


def test_the_laws_notice_lanes_that_are_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the tables of who sits where are one behind."""
    requests = ragged(20, n=3)
    among = written(requests)
    keep = board.Board.keep
    monkeypatch.setattr(board.Board, "keep", lambda this, stay: keep(this, [*stay[1:], *stay[:1]]))
    assert written(requests) != among


def test_memory_is_taken_once_as_said_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, arenas = ragged(30, n=3), []
    make = Arena.__init__

    def noting(this: Arena, config, size: int, *rest: object) -> None:
        make(this, config, size, *rest)
        this.k_YAGD.fill_(torch.nan)  # what nobody wrote to may hold anything
        this.v_YAGD.fill_(torch.nan)
        this.k_YAGD[:, this.spare], this.v_YAGD[:, this.spare] = 0, 0
        arenas.append(this)

    a_token, seen = token_bytes(MODEL.config, torch.float32), []
    among = written(requests)
    monkeypatch.setattr(Arena, "__init__", noting)
    tight = 40 + 3 * 24 + 10
    assert written(requests, kv_bytes=tight * a_token, progress=seen.append) == among
    [arena] = arenas
    assert arena.bytes_held == (tight + 1) * a_token  # and a spare place
    assert arena.ranges.free == [(0, tight)]
    tokens = sum(len(s.token_ids) + s.finished for several in among.values() for s in several)
    assert seen[-1] == Progress(ready=90, running=0, tokens=tokens)
    assert max(at.running for at in seen) > 1


def test_a_gpu_in_half_precision_has_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not engine._in_lanes(torch.zeros(1, dtype=torch.bfloat16), 64)
    assert not engine._in_lanes(torch.zeros(1), 64)

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.bfloat16

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert engine._in_lanes(OnGpu(), 64)  # type: ignore[arg-type]
    assert not engine._in_lanes(OnGpu(), 6)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not engine._in_lanes(OnGpu(), 64)  # type: ignore[arg-type]  # Turing has no flash kernel


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("head_dim", [16, 24])  # our kernel knows one, the flash kernel both
def test_on_a_gpu_graphs_and_kernels_write_what_plain_passes_would(head_dim, monkeypatch) -> None:
    """Greedy, in bf16, against the same model's own forward passes over the whole texts."""
    monkeypatch.undo()
    config = replace(GROUPED, dim=4 * head_dim)
    model = tiny_model(config).to("cuda", torch.bfloat16)
    decoding = engine.Decoding(0.0, 1.0, 20)
    requests = templated(40, 3, 30)
    for [sample, *others], request in zip(
        engine.generate(model, requests, decoding, seed=0, slots=64), requests
    ):
        assert all(other == sample for other in others)
        ids = torch.tensor([request.token_ids + sample.token_ids], device="cuda")
        logits_TV = model(ids)[0, len(request.token_ids) - 1 : -1].float()
        best_T = logits_TV.amax(dim=-1)
        drawn_T = logits_TV.gather(1, torch.tensor(sample.token_ids, device="cuda")[:, None])[:, 0]
        assert (best_T - drawn_T).max() < 0.1  # bf16: a near tie may fall either way
