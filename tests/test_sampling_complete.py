"""`Completer`: the right format, the right stops, and the same texts on any number of ranks."""

import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer

from llama import encode_prompt, encode_raw
from sampling import Completer, Completion, Decoding, Request, generate
from sampling.complete import last_tokens

TOKENIZER = tiny_tokenizer()
PROMPTS = ["Is it raining?", "Count the words.", "", "The answer is 1024"]
IDS = ["a", "b", "c", "d"]
HOW = {"seed": 4, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 10, "description": "test"}


def completer(**how) -> Completer:
    return Completer(tiny_model(), TOKENIZER, **{"progress": False} | how)


def expected(prompt_ids: list[list[int]], n: int, stop_ids: set[int]) -> list[list[Completion]]:
    requests = [Request(id, ids, n) for id, ids in zip(IDS, prompt_ids)]
    samples = generate(tiny_model(), requests, Decoding(0.8, 0.95, 10, frozenset(stop_ids)), seed=4)
    return [
        [
            Completion(TOKENIZER.decode(s.token_ids).strip(), s.token_ids, s.finished)
            for s in several
        ]
        for several in samples
    ]


def test_a_prompt_is_a_users_turn() -> None:
    made = completer()(PROMPTS, ids=IDS, n=3, **HOW)
    assert made == expected([encode_prompt(TOKENIZER, p) for p in PROMPTS], 3, {TOKENIZER.eos_id})
    assert len({completion.text for several in made for completion in several}) > 8


def test_raw_continues_the_text_and_a_newline_may_end_it() -> None:
    raw = [encode_raw(TOKENIZER, prompt) for prompt in PROMPTS]
    stops = {TOKENIZER.eos_id}
    assert completer()(PROMPTS, ids=IDS, n=2, raw=True, **HOW) == expected(raw, 2, stops)
    stops.add(TOKENIZER.newline_id)
    lines = completer()(PROMPTS, ids=IDS, n=2, raw=True, stop_at_newline=True, **HOW)
    assert lines == expected(raw, 2, stops)


class Rank:
    """One of several ranks, that hears from the others what was left for it."""

    def __init__(self, rank: int, world_size: int, heard: dict) -> None:
        self.rank, self.world_size, self.heard = rank, world_size, heard
        self.is_main = rank == 0

    def slice(self, rows: list) -> list:
        return rows[self.rank :: self.world_size]

    def gather_rows(self, rows: list) -> list:
        self.heard[self.rank] = rows
        total = sum(map(len, self.heard.values()))
        return [
            self.heard.get(i % self.world_size, rows)[i // self.world_size] for i in range(total)
        ]


def test_ranks_together_make_what_one_makes() -> None:
    heard: dict = {}
    for rank in (0, 1):
        together = completer(group=Rank(rank, 2, heard))(PROMPTS, ids=IDS, n=2, **HOW)
    assert together == completer()(PROMPTS, ids=IDS, n=2, **HOW)
    assert len(heard[0]) == len(heard[1]) == 2


def test_ids_are_unique() -> None:
    with pytest.raises(ValueError, match="4 prompts have 3 different ids"):
        completer()(PROMPTS, ids=["a", "b", "a", "d"], n=1, **HOW)


def test_the_bar_counts_samples(capsys: pytest.CaptureFixture[str]) -> None:
    completer(progress=True)(PROMPTS, ids=IDS, n=2, **HOW)
    assert "test: 100%" in (bar := capsys.readouterr().err) and "8/8" in bar
    completer()(PROMPTS, ids=IDS, n=2, **HOW)
    assert capsys.readouterr().err == ""


def test_choices_are_weighed_wherever_one_of_them_stands() -> None:
    """By a forward pass over the whole text: the probability of each digit in each place."""
    choices = [f" the {digit}" for digit in "012345"]
    watch = last_tokens(TOKENIZER, choices)
    model, how = tiny_model(), HOW | {"max_new_tokens": 60, "temperature": 1.5}
    plain = completer()(PROMPTS, ids=IDS, n=20, **how)
    made = completer()(PROMPTS, ids=IDS, n=20, choices=choices, **how)
    seen = 0
    for prompt, several, without in zip(PROMPTS, made, plain):
        for one, same in zip(several, without):
            assert (one.text, one.token_ids, same.places) == (same.text, same.token_ids, ())
            ids, asked = one.token_ids, encode_prompt(TOKENIZER, prompt)
            places = [i for i, token in enumerate(ids) if token in watch]
            assert len(one.places) == len(places)
            for i, (choice, end, chances) in zip(places, one.places):
                seen += 1
                assert watch[choice] == ids[i] and one.text[:end].endswith("012345"[choice])
                assert one.text[:end] == TOKENIZER.decode(ids[: i + 1]).strip()
                chance_V = model(torch.tensor([asked + ids[:i]]))[0, -1].softmax(dim=-1)
                assert chances == pytest.approx(chance_V[list(watch)].tolist(), rel=1e-3)
    assert seen > 5


def test_choices_of_several_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="more than one token each"):
        last_tokens(TOKENIZER, ["Score: 1", "Score: 10"])
