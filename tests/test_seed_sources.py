"""Rows of other kinds than Open Assistant's: what they become, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seed.items import Answer, Item, without_repeats
from seed.sources import DIFFERENT_PROMPTS, MANY_TURNS, SAME_ANSWER, read_source


def source(tmp_path, *rows):
    path = tmp_path / "my.rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_source(path, "en")


def said(role, text):
    return {"role": role, "content": text}


BEST = (Answer("fig", 0),)
BOTH = (Answer("fig", 0), Answer("car", 1))


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "answers"),
    [
        ({"instruction": "Name a fruit.", "output": "fig"}, "Alpaca", "Name a fruit.", BEST),
        ({"instruction": "Add.", "input": "", "output": "fig"}, "Alpaca", "Add.", BEST),
        ({"instruction": "Add.", "input": "1 2", "output": "fig"}, "Alpaca", "Add.\n\n1 2", BEST),
        ({"prompt": "p", "response": "fig"}, "plain", "p", BEST),
        ({"prompt": "p"}, "plain", "p", ()),
        (
            {"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 0}]},
            "plain",
            "p",
            (Answer("a", 1), Answer("b", 0)),
        ),
        ({"prompt": "p", "chosen": "fig", "rejected": "car"}, "preferences", "p", BOTH),
        (
            {
                "prompt": [said("user", "p")],
                "chosen": [said("assistant", "fig")],
                "rejected": [said("assistant", "car")],
            },
            "preferences",
            "p",
            BOTH,
        ),
        (
            {
                "chosen": [said("user", "p"), said("assistant", "fig")],
                "rejected": [said("user", "p"), said("assistant", "car")],
            },
            "preferences",
            "p",
            BOTH,
        ),
        (
            {
                "prompt": "p",
                "chosen": [said("user", "p"), said("assistant", "fig")],
                "rejected": "car",
            },
            "preferences",
            "p",
            BOTH,
        ),
    ],
)
def test_each_kind_is_known_by_its_fields(tmp_path, row, kind, prompt, answers):
    found = source(tmp_path, row, row | {"id": "mine"})
    assert found.kind == kind and found.file == "my.rows.jsonl"
    assert found.items == [Item("my-1", prompt, answers), Item("mine", prompt, answers)]


@pytest.mark.parametrize(
    ("row", "flaw"),
    [
        ({"prompt": " "}, "blank"),
        ({"instruction": "", "output": "fig"}, "blank"),
        ({"prompt": "p", "system": "Be brief.", "response": "fig"}, MANY_TURNS),
        ({"prompt": "p", "chosen": "fig", "rejected": "fig"}, SAME_ANSWER),
        (
            {
                "chosen": [said("user", "p"), said("assistant", "fig")],
                "rejected": [said("user", "q"), said("assistant", "car")],
            },
            DIFFERENT_PROMPTS,
        ),
        (
            {
                "prompt": [said("user", "p"), said("assistant", "a"), said("user", "q")],
                "chosen": "fig",
                "rejected": "car",
            },
            MANY_TURNS,
        ),
        (
            {
                "prompt": [said("system", "s"), said("user", "p")],
                "chosen": "fig",
                "rejected": "car",
            },
            MANY_TURNS,
        ),
        ({"chosen": "fig", "rejected": "car"}, MANY_TURNS),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, row, flaw):
    assert source(tmp_path, row).items[0].flaw == flaw


def test_blank_answers_are_flawed_one_by_one(tmp_path):
    (item,) = source(tmp_path, {"prompt": "p", "chosen": "fig", "rejected": " "}).items
    assert item.flaw is None and [answer.flaw for answer in item.answers] == [None, "blank"]
    assert item.best == item.answers[0] and item.ranked == []


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "expected one of the fields message_tree_id and prompt, message_id,"),
        ({"question": "p"}, "found 'question'"),
        ({"instruction": "p"}, "expected a field 'output'"),
        ({"instruction": "p", "output": None}, "expected 'output' to be a string"),
        ({"instruction": "p", "output": "a", "input": 3}, "expected 'input' to be a string"),
        ({"prompt": "p", "chosen": "a"}, "expected a field 'rejected'"),
        (
            {"prompt": "p", "chosen": [], "rejected": "b"},
            "expected 'chosen' to be a text, or a list",
        ),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "expected 'chosen' to be a text, or"),
        ({"prompt": "p", "chosen": [{"role": "user"}], "rejected": "b"}, "expected 'chosen' to be"),
        ({"prompt": 3}, "expected 'prompt' to be a string, found 3"),
        ({"prompt": "p", "response": ["a"]}, "expected 'response' to be a string"),
        ({"prompt": "p", "responses": []}, "expected 'responses' to be a list of two or more"),
        ({"prompt": "p", "id": 3}, "expected 'id' to be a string that is not blank"),
    ],
)
def test_a_broken_row_is_refused_by_line(tmp_path, row, complaint):
    with pytest.raises(ValueError, match="my.rows.jsonl:1: .*; ") as caught:
        source(tmp_path, row)
    assert complaint in str(caught.value)


def test_a_row_of_another_kind_than_the_first_is_refused(tmp_path):
    with pytest.raises(ValueError, match="my.rows.jsonl:2: expected a field 'instruction'"):
        source(tmp_path, {"instruction": "p", "output": "a"}, {"prompt": "p"})


def test_an_id_comes_once(tmp_path):
    with pytest.raises(ValueError, match="my.rows.jsonl:3: .* found 'my-2' as in line 2"):
        source(tmp_path, {"prompt": "p"}, {"prompt": "q"}, {"prompt": "r", "id": "my-2"})


def test_a_json_array_is_told_what_to_become(tmp_path):
    path = tmp_path / "alpaca_data.json"
    for text in ('[{"instruction": "p", "output": "a"}]', '[\n  {\n    "instruction": "p"'):
        path.write_text(text)
        with pytest.raises(ValueError, match="json:1: expected a JSON object, .* on each line"):
            read_source(path, "en")


TEXT = st.sampled_from(["p", "P", " p ", "q", "", "r s", "r  S"])


@given(st.lists(TEXT, max_size=12))
def test_of_prompts_alike_the_first_is_kept(prompts):
    items = without_repeats([Item(str(n), text) for n, text in enumerate(prompts)])
    kept = [" ".join(item.prompt.lower().split()) for item in items if item.flaw is None]
    alike = [" ".join(text.lower().split()) for text in prompts]
    assert kept == list(dict.fromkeys(alike))
    firsts = [item.id for item in items if item.flaw is None]
    assert firsts == [str(alike.index(text)) for text in kept]


def test_a_flawed_prompt_does_not_make_a_good_one_a_repeat():
    items = without_repeats([Item("1", "p", flaw="deleted"), Item("2", "p")])
    assert [item.flaw for item in items] == ["deleted", None]
