"""New prompts: what is shown, what is kept, and that neither depends on ranks or on time."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import partial

import pytest
from test_sampling_sieve import sieve

from sampling.self_instruct import (
    chat_text,
    demonstrations,
    few_shot_text,
    task_in_reply,
    write_prompts,
    write_round,
)
from sampling.sieve import REASONS

SEEDS = [
    {"id": f"s{i}", "prompt": f"Write seed number {i} about topic {i * i}."} for i in range(12)
]
HOW = {"seed": 5, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 30}


@dataclass(frozen=True)
class Line:
    text: str
    finished: bool = True
    token_ids: tuple[int, ...] = ()


class FakeWriter:
    """Writes a line that depends on (seed, id) alone, as a sampler of ours does; remembers all."""

    def __init__(self, space: int = 400) -> None:
        self.space, self.prompts, self.ids, self.asked = space, [], [], []

    def __call__(self, prompts, *, ids, seed, **asked) -> list[list[Line]]:
        self.prompts += prompts
        self.ids += ids
        self.asked.append(asked)
        return [[self.line(random.Random(f"{seed}/{name}"))] for name in ids]

    def line(self, draw: random.Random) -> Line:
        kind = draw.randrange(10)
        task = (
            f" Describe thing {draw.randrange(self.space)} to person {draw.randrange(self.space)}."
        )
        if kind == 0:
            lost = [" la" * 9, " ## ++ 1 ==", " Спой мне песню"]
            return Line(
                draw.choice(["", "  ", " Go", " word" * 60, " Draw an Image: of me.", *lost])
            )
        if kind == 1:
            return Line(task, finished=False)
        if kind == 2:
            return Line(draw.choice([SEEDS[3]["prompt"], "Held  OUT prompt one."]))
        return Line(task)


def written(count: int, writer=None, **changed) -> tuple[list[dict], dict[str, int]]:
    how = {"sieve": sieve(), "round_size": 32} | HOW | changed
    return write_prompts(writer or FakeWriter(), SEEDS, count, **how)


def test_everything_written_is_counted_once() -> None:
    rows, counts = written(200)
    outcomes = {name: counts[name] for name in ("unfinished", *REASONS, "surplus", "kept")}
    assert counts["written"] == sum(outcomes.values()) == 32 * counts["rounds"]
    assert counts["kept"] == len(rows) == 200
    never = {name for name, count in outcomes.items() if not count}
    assert never == {"similar"}  # each other fate occurred


def test_what_is_kept_is_new_and_well_formed() -> None:
    rows, _ = written(100)
    prompts = [row["prompt"] for row in rows]
    assert len(set(prompts)) == 100 and len({row["id"] for row in rows}) == 100
    assert not {*prompts} & {row["prompt"] for row in SEEDS}
    assert all(prompt.startswith("Describe thing ") for prompt in prompts)


def test_a_line_is_asked_for_raw() -> None:
    writer = FakeWriter()
    written(10, writer)
    asked = writer.asked[0]
    assert (asked["n"], asked["raw"], asked["stop_at_newline"]) == (1, True, True)
    assert (asked["temperature"], asked["top_p"], asked["max_new_tokens"]) == (0.6, 0.9, 30)


def test_few_shot_text() -> None:
    text = few_shot_text([{"prompt": "Sing."}, {"prompt": "Go\n\n home."}])
    assert text == "Task: Sing.\nTask: Go home.\nTask:"


def test_six_seed_and_two_made_prompts_are_shown() -> None:
    writer = FakeWriter()
    rows, _ = written(100, writer)
    prompt_of = {row["id"]: row["prompt"] for row in (*SEEDS, *rows)}
    text_of = dict(zip(writer.ids, writer.prompts))
    for row in rows:
        shown = row["demonstrations"]
        made = [name for name in shown if name.startswith("r")]
        number = int(row["id"].split(".")[0][1:])
        assert len(shown) == len(set(shown)) == 8
        assert len(made) == (2 if number else 0)  # nothing is made yet in round 0
        assert all(int(name.split(".")[0][1:]) < number for name in made)
        assert text_of[row["id"]] == few_shot_text([{"prompt": prompt_of[name]} for name in shown])


def test_demonstrations_are_shuffled() -> None:
    made = [{"id": "m0"}, {"id": "m1"}]
    shows = [demonstrations(SEEDS, made, 6, 2, random.Random(i)) for i in range(200)]
    places = Counter(i for show in shows for i, row in enumerate(show) if row["id"] == "m0")
    assert len(places) == 8 and max(places.values()) < 50
    only_one = demonstrations(SEEDS, made[:1], 6, 2, random.Random(0))
    assert all(row["id"].startswith("s") for row in only_one) and len(only_one) == 8


def test_every_request_shows_something_else() -> None:
    writer = FakeWriter()
    written(60, writer, n_seed=8, n_made=0)
    assert len(writer.prompts) >= 64  # two rounds or more
    assert len(set(writer.prompts)) == len(writer.prompts)


def test_same_seed_same_prompts() -> None:
    assert written(60) == written(60)
    assert written(60)[0] != written(60, seed=6)[0]


def test_fewer_are_the_beginning_of_more() -> None:
    assert written(40)[0] == written(100)[0][:40]


def test_a_finished_round_is_all_that_the_next_one_needs() -> None:
    """A run that was interrupted builds its sieve anew and goes on as if nothing had happened."""
    whole, counts = written(100)
    made: list[dict] = []
    for number in range(counts["rounds"]):
        fresh = sieve()
        for row in (*SEEDS, *made):
            fresh.keep(row["prompt"])
        wanted = 100 - len(made)
        how = {"number": number, "sieve": fresh, "round_size": 32} | HOW
        made += write_round(FakeWriter(), SEEDS, made, wanted, **how)[0]
    assert made == whole


def test_rounds_that_were_kept_are_not_asked_for_again() -> None:
    whole = written(100)
    kept: dict[int, list[dict]] = {}

    def keep(number: int, make, last: int | None = None) -> list[dict]:
        if number == last:
            raise KeyboardInterrupt
        if number not in kept:
            kept[number] = json.loads(json.dumps(make()))
        return kept[number]

    with pytest.raises(KeyboardInterrupt):
        written(100, keep=partial(keep, last=2))
    assert sorted(kept) == [0, 1] and whole[1]["rounds"] > 3
    writer = FakeWriter()
    assert written(100, writer, keep=keep) == whole
    assert len(writer.asked) == whole[1]["rounds"] - 2


def test_it_gives_up() -> None:
    rows, counts = written(50, FakeWriter(space=2), max_rounds=6)
    assert len(rows) <= 4 and counts["rounds"] == 6 and counts["repeat"] > 50


def test_none_wanted_none_asked() -> None:
    writer = FakeWriter()
    assert written(0, writer)[0] == [] and writer.prompts == []


def test_similar_prompts_are_rejected() -> None:
    rows, counts = written(20, FakeWriter(space=20), sieve=sieve(similarity=0.6), max_rounds=4)
    assert counts["similar"] > 50  # 4 of 6 words are the template's, in the same order
    assert len(rows) == 1


def test_too_few_seeds_that_may_be_shown() -> None:
    with pytest.raises(ValueError, match="0 of 12 seed prompts pass .* but 8 are shown"):
        written(10, sieve=sieve(max_words=4))


def test_long_seed_prompts_are_not_shown() -> None:
    seeds = [*SEEDS, {"id": "long", "prompt": "word " * 60}]
    how = {"sieve": sieve(), "round_size": 64} | HOW
    rows, _ = write_prompts(FakeWriter(), seeds, 30, **how)
    assert all("long" not in row["demonstrations"] for row in rows)


@pytest.mark.parametrize(
    ("reply", "task"),
    [
        ("Task: Sing a song.", "Sing a song."),
        ("Sure! Here is one:\n\n  Task:  Sing\ta song. \n", "Sing a song."),
        ("Task: one\nTask: two", "two"),
        ("My Task: sing", ""),
        ("Sing a song.", ""),
        ("", ""),
    ],
)
def test_the_task_in_a_chat_models_reply(reply: str, task: str) -> None:
    assert task_in_reply(reply) == task


def test_a_chat_model_is_asked_under_its_format() -> None:
    class Chats(FakeWriter):
        def line(self, draw: random.Random) -> Line:
            line = super().line(draw)
            return Line(f"Here you are.\nTask:{line.text}", line.finished)

    plain, chats = FakeWriter(), Chats()
    rows, counts = written(40, plain)
    again, told = written(40, chats, chat=True)
    assert (again, told) == (rows, counts)  # the same tasks, out of the replies
    assert {(asked["raw"], asked["stop_at_newline"]) for asked in plain.asked} == {(True, True)}
    assert {(asked["raw"], asked["stop_at_newline"]) for asked in chats.asked} == {(False, False)}
    for text, listed in zip(chats.prompts, plain.prompts):
        assert listed.removesuffix("\nTask:") in text and "Write one more task" in text


def test_chat_text_survives_braces() -> None:
    assert "Task: Fill {this} in." in chat_text([{"prompt": "Fill {this} in."}])
