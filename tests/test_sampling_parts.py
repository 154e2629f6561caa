"""Requests in parts: the same samples, each part given out while the next is in progress."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch
from test_sampling_complete import HOW, IDS, PROMPTS, completer
from test_sampling_engine import DECODING, MODEL, ragged

from judge import (
    compare_in_parts,
    compare_responses,
    compare_scores,
    judge_in_parts,
    judge_responses,
    load_rubric,
    scores_in_parts,
)
from llama.cache import token_bytes
from sampling import engine
from sampling.batch import Batch, Sample
from sampling.engine import generate, generate_parts
from sampling.respond import respond, respond_in_parts
from sampling.spread import Progress, Request

REQUESTS = ragged(40, n=3)
PARTS = [REQUESTS[:16], REQUESTS[16:17], [], REQUESTS[17:36], REQUESTS[36:]]


def made_of(parts: Sequence[list[Request]], **how) -> Iterator[list[list[Sample]]]:
    return generate_parts(MODEL, parts, DECODING, **{"seed": 1, "slots": 32} | how)


def in_one(requests: list[Request] = REQUESTS, **how) -> list[list[Sample]]:
    return generate(MODEL, requests, DECODING, **{"seed": 1, "slots": 32} | how)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("slots", [5, 32, 500])
def test_the_samples_are_those_of_one_part(slots: int, processes: int) -> None:
    made = list(made_of(PARTS, slots=slots, processes=processes))
    assert [len(part) for part in made] == [16, 1, 0, 19, 4]
    assert list(chain(*made)) == in_one()


def steps(calls: Sequence[Sequence[list[Request]]]) -> int:
    """How often the model writes a token to each sample in progress."""
    seen: list[Progress] = []
    for parts in calls:
        for _ in made_of(parts, processes=1, progress=seen.append):
            pass
    return len(seen)


def test_the_pool_does_not_run_empty_between_parts() -> None:
    parts = [REQUESTS[start : start + 8] for start in range(0, 40, 8)]
    one, in_parts, apart = steps([[REQUESTS]]), steps([parts]), steps([[part] for part in parts])
    assert in_parts < 1.1 * one and apart > 1.5 * one, (one, in_parts, apart)


def test_a_part_is_given_out_while_the_next_is_in_progress() -> None:
    seen: list[Progress] = []
    made = made_of([REQUESTS[:20], REQUESTS[20:]], processes=1, progress=seen.append)
    assert next(made) == in_one(REQUESTS[:20])
    assert seen[-1].running > 8 and seen[-1].ready < 3 * len(REQUESTS)
    assert next(made) == in_one(REQUESTS[20:])
    assert seen[-1].ready == 3 * len(REQUESTS) and not seen[-1].running
    assert all(before.ready <= now.ready for before, now in pairwise(seen))


def test_a_longer_prompt_of_the_next_part_is_read_within_the_room(monkeypatch) -> None:
    step, over = Batch.step, []

    def look(this: Batch) -> list:
        over.append(this.cache.tokens_held - this.room)
        return step(this)

    monkeypatch.setattr(Batch, "step", look)
    parts = [[Request(f"{size}.{i}", [7] * size) for i in range(9)] for size in (2, 40)]
    room = 12 * (24 + 8) * token_bytes(MODEL.config, torch.float32)
    made = list(made_of(parts, kv_bytes=room))
    assert max(over) <= 0
    monkeypatch.undo()
    assert made == list(made_of(parts))


def test_whoever_stops_early_leaves_the_model_as_it_was() -> None:
    before = MODEL.training
    MODEL.train()
    made = made_of(PARTS, processes=1)
    next(made)
    assert not MODEL.training
    made.close()  # type: ignore[attr-defined]
    assert MODEL.training
    MODEL.train(before)


def test_refused_requests_have_their_place_in_their_part() -> None:
    full = Request("full", [5] * 256, 2)
    parts = [[full], [REQUESTS[0], full], [full, replace(full, id="another")]]
    shapes = [
        [[sample.refused is None for sample in one] for one in part] for part in made_of(parts)
    ]
    assert shapes == [[[False] * 2], [[True] * 3, [False] * 2], [[False] * 2] * 2]


def test_when_memory_runs_out_no_part_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    run, tried = engine._run, []

    def greedy(model, parts, decoding, seed, slots, *rest):
        tried.append((len(parts), slots))
        for number, part in enumerate(run(model, parts, decoding, seed, slots, *rest)):
            if slots > 8 and number == 1:
                raise torch.OutOfMemoryError("as if")
            yield part

    monkeypatch.setattr(engine, "_run", greedy)
    assert list(chain(*made_of(PARTS, processes=1))) == in_one(slots=8)
    assert tried[:3] == [(5, 32), (4, 16), (3, 8)]


def test_texts_in_parts_are_the_texts() -> None:
    whole = completer()(PROMPTS, ids=IDS, n=2, **HOW)
    parts = completer()(PROMPTS, ids=IDS, n=2, parts=[1, 3], **HOW)
    assert not isinstance(parts, list) and list(parts) == whole


def test_answers_and_judgements_in_parts_are_the_rows() -> None:
    how = {name: value for name, value in HOW.items() if name != "description"}
    prompts = [{"id": name, "prompt": text} for name, text in zip(IDS, PROMPTS)]
    items = [row | {"response": "It is."} for row in prompts]
    complete, rubric = completer(), load_rubric("additive_short")
    answers = list(respond_in_parts(complete, [prompts[:3], prompts[3:]], n=2, **how))
    assert [len(part) for part in answers] == [6, 2]
    assert [*chain(*answers)] == respond(complete, prompts, n=2, **how)
    judged = list(judge_in_parts(complete, rubric, [items[:1], items[1:]], k=2, **how))
    assert [len(part) for part in judged] == [2, 6]
    assert [*chain(*judged)] == judge_responses(complete, rubric, items, k=2, **how)


def test_comparisons_in_parts_are_the_rows() -> None:
    how = {name: value for name, value in HOW.items() if name != "description"}
    words = [f"{text} One." for text in PROMPTS]
    items = [
        {"id": name, "prompt": text, "ours": ours, "theirs": theirs}
        for name, text, ours, theirs in zip(IDS, PROMPTS, words, reversed(words))
    ]
    complete, rubric = completer(), load_rubric("additive_short")
    for parts in ([items[:3], items[3:]], [[], items[:1], items[1:]]):
        asked = list(compare_in_parts(complete, parts, template="{prompt}{first}{second}", **how))
        assert [len(part) for part in asked] == [len(part) for part in parts]
        assert [*chain(*asked)] == compare_responses(
            complete, items, template="{prompt}{first}{second}", **how
        )
        scored = list(scores_in_parts(complete, rubric, parts, k=2, **how))
        assert [len(part) for part in scored] == [len(part) for part in parts]
        assert [*chain(*scored)] == compare_scores(complete, rubric, items, k=2, **how)
