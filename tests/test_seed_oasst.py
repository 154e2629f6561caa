"""Open Assistant's trees: a dump of our own in the published form, counted by hand, and its damage.

tests/data/oasst.trees.jsonl holds 30 trees of ours, and oasst.messages.jsonl the same as messages:

  12 prompts with answers ranked 0, 1, 2; four of them have a fourth that cannot be used (German,
     failed its review, blank, the best one's text again)
   6 prompts with answers ranked 0, 1
   2 prompts whose second answer is deleted, or a model's
   1 prompt whose best answer is deleted, with answers ranked 1, 2
   3 prompts with one, none, and two answers that nobody ranked
   6 prompts that cannot be used: German (2 answers), deleted (1), failed its review (1), not ready
     for export (2), the first prompt again in other letters (2), a model's (1)
"""

import gzip
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seed import rows
from seed.items import without_repeats
from seed.oasst import read_messages, read_trees
from seed.report import build_report, render_report
from seed.sources import read_source

DATA = Path(__file__).parent / "data"
TREES, MESSAGES = DATA / "oasst.trees.jsonl", DATA / "oasst.messages.jsonl"


def objects(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def written(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_both_forms_give_the_same_first_turns():
    assert read_trees(TREES, "en") == read_messages(MESSAGES, "en")
    assert read_trees(TREES, "de") == read_messages(MESSAGES, "de") != read_trees(TREES, "en")


@pytest.mark.parametrize("path", [TREES, MESSAGES], ids=["trees", "messages"])
def test_every_count_is_the_hands(path):
    source = read_source(path, "en")
    report = build_report([source], without_repeats(source.items), {})
    assert report["sources"][0] | {"file": "", "kind": ""} == {
        "file": "", "kind": "", "prompts": 30, "later_turns": 3,
    }  # fmt: skip
    assert report["prompts"] == {
        "read": 30,
        "fates": {
            "kept": 24,
            "another language": 1,
            "deleted": 1,
            "failed its review": 1,
            "its tree is not ready_for_export": 1,
            "repeats an earlier one": 1,
            "written by a model": 1,
        },
    }
    assert report["answers"] == {
        "read": 71,  # 12·3 + 4 + 6·2 + 2·2 + 3 + 1 + 0 + 2 + 9
        "fates": {
            "kept": 55,
            "its prompt was left out": 9,
            "deleted": 2,
            "another language": 1,
            "blank": 1,
            "failed its review": 1,
            "repeats an earlier one": 1,
            "written by a model": 1,
        },
    }
    assert report["kept"] == {
        "with_best_answer": 20, "with_ranked_answers": 19, "with_neither": 3,
    }  # fmt: skip
    table = render_report(report)
    assert ["kept", "24", "55"] in [line.split() for line in table.splitlines()]


def test_another_language_is_as_good():
    source = read_source(TREES, "de")
    (item,) = (item for item in source.items if item.flaw is None)
    assert item.prompt == "Nenne drei Früchte." and item.best.text == "Apfel, Birne, Feige."


def test_if_the_best_answer_cannot_be_used_the_second_is_not_the_best():
    (item,) = (item for item in read_source(TREES, "en").items if "grass" in item.prompt)
    assert item.best is None
    assert [(answer.text, answer.rank) for answer in item.ranked] == [
        ("Green.", 1),
        ("It grows.", 2),
    ]


def test_of_answers_with_one_text_the_best_ranked_is_kept():
    items = without_repeats(read_source(TREES, "en").items)
    (item,) = (item for item in items if item.prompt == "List three colours in reverse order.")
    assert [answer.rank for answer in item.answers if answer.flaw] == [3]


def test_a_dump_may_be_gzipped_whatever_it_is_called(tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(gzip.compress(TREES.read_bytes()))
    assert read_source(path, "en").items == read_source(TREES, "en").items


def test_messages_may_come_in_any_order(tmp_path):
    backwards = written(tmp_path / "m.jsonl", objects(MESSAGES)[::-1])
    given, turned = read_messages(MESSAGES, "en"), read_messages(backwards, "en")
    assert given[1] == turned[1]
    assert {item.id: Counter(item.answers) for item in given[0]} == {
        item.id: Counter(item.answers) for item in turned[0]
    }


def test_what_is_null_may_be_missing_and_other_fields_are_not_looked_at(tmp_path):
    needed = ("message_id", "parent_id", "text", "role", "lang", "tree_state", "rank")
    needed += ("deleted", "review_result", "synthetic")
    spare = [
        {key: row[key] for key in needed if not (row[key] is None or row[key] is False)}
        | {"review_result": row["review_result"]}
        for row in objects(MESSAGES)
    ]
    path = written(tmp_path / "m.jsonl", spare)
    assert read_messages(path, "en") == read_messages(MESSAGES, "en")


def message(name, parent=None, role=None, **more):
    role = role or ("assistant" if parent else "prompter")
    row = {"message_id": name, "parent_id": parent, "role": role, "text": "Hi.", "lang": "en"}
    return row | {"tree_state": "ready_for_export"} | more


ROOT, REPLY = message("a"), message("b", "a")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROOT, message("b", "x")], "2: expected the parent 'x' in this file, found none"),
        ([ROOT, message("b", "c"), message("c", "b", "prompter")], "'b' is a reply to itself"),
        ([ROOT, message("b", "b")], "2: expected a reply to the other side, found assistant to"),
        ([ROOT, message("b", "a", "prompter")], "2: expected a reply to the other side"),
        ([ROOT, message("b", role="assistant")], "2: expected a message without a parent to be"),
        ([ROOT, REPLY, REPLY], "3: expected an id of its own, found 'b' as in line 2"),
        ([ROOT, REPLY | {"rank": -1}], "2: expected 'rank' to be a number 0, 1, … or null"),
        ([ROOT, REPLY | {"rank": True}], "2: expected 'rank' to be a number 0, 1, … or null"),
        ([ROOT, REPLY | {"role": "system"}], "2: expected 'role' to be 'prompter' or 'assistant'"),
        ([ROOT, REPLY | {"role": ["prompter"]}], "2: expected 'role' to be 'prompter' or"),
        ([ROOT, REPLY | {"deleted": "no"}], "2: expected 'deleted' to be true, false or null"),
        ([ROOT, REPLY | {"text": None}], "2: expected 'text' to be a string, found None"),
        ([ROOT, REPLY | {"text": "\ud800"}], "2: expected 'text' to be a string"),
        ([ROOT, REPLY | {"lang": 3}], "2: expected 'lang' to be a string that is not blank"),
        ([ROOT, REPLY | {"message_id": ""}], "2: expected 'message_id' to be a string that is not"),
        ([ROOT, {"message_id": "b"}], "2: expected a field 'text', a string; add it"),
    ],
)  # fmt: skip
def test_a_broken_message_is_refused_by_line(tmp_path, rows, said):
    path = written(tmp_path / "m.jsonl", rows)
    with pytest.raises(ValueError, match="; ") as caught:
        read_source(path, "en")
    assert str(caught.value).startswith(f"{path}:") and said in str(caught.value)


def tree(prompt, **more):
    return {"message_tree_id": "a", "tree_state": "ready_for_export", "prompt": prompt} | more


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (tree(ROOT | {"replies": {}}), "'replies' to be a list of messages, found {}"),
        (tree(ROOT | {"replies": ["b"]}), "'replies' to be a list of messages"),
        (tree(ROOT | {"replies": [REPLY, REPLY]}), "an id of its own, found 'b' as in line 1"),
        (tree(ROOT | {"replies": [message("b", "x")]}), "the parent_id 'a', found 'x'"),
        (tree(ROOT | {"replies": [message("b", role="prompter")]}), "a reply to the other side"),
        (tree(message("a", role="assistant")), "without a parent to be a prompter's"),
        (tree(ROOT, tree_state=None), "'tree_state' to be a string that is not blank"),
        ({"message_tree_id": "a", "prompt": ROOT}, "a field 'tree_state'"),
    ],
)
def test_a_broken_tree_is_refused_by_line(tmp_path, row, said):
    path = written(tmp_path / "t.jsonl", [row])
    with pytest.raises(ValueError, match="; ") as caught:
        read_source(path, "en")
    assert str(caught.value).startswith(f"{path}:1: ") and said in str(caught.value)


def test_a_tree_may_be_deeper_than_python_recurses(tmp_path):
    """JSON itself is read by recursion: as far as that goes, we go; then it is a plain refusal."""

    def nested(depth):
        text = "".join(
            json.dumps(message(f"m{n}", role=("prompter", "assistant")[n % 2]))[:-1]
            + ', "replies": ['
            for n in range(depth)
        )
        return '{"message_tree_id": "a", "tree_state": "x", "prompt": ' + text + "]}" * depth + "}"

    path = tmp_path / "t.jsonl"
    path.write_text(nested(400))
    assert read_source(path, "en").later_turns == 398
    path.write_text(nested(100_000))
    with pytest.raises(ValueError, match="t.jsonl:1: expected plain JSON"):
        read_source(path, "en")


def test_a_long_chain_of_messages_is_walked_once(tmp_path):
    """Ten thousand in a row, the last first: in quadratic time this would take minutes."""
    chain = [message("m0")]
    chain += [
        message(f"m{n}", f"m{n - 1}", ("prompter", "assistant")[n % 2]) for n in range(1, 10_000)
    ]
    items, later = read_messages(written(tmp_path / "m.jsonl", chain[::-1]), "en")
    assert (len(items), later) == (1, 9_998)


@pytest.mark.parametrize("cut", [3, 40, -9, -1])
def test_a_damaged_gzip_file_is_refused(tmp_path, cut):
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(TREES.read_bytes())[:cut])
    with pytest.raises(ValueError, match=r"t.jsonl.gz:\d+: expected a whole gzip file .*; fetch"):
        read_source(path, "en")


def test_a_gzip_file_of_rubbish_is_refused(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    packed = bytearray(gzip.compress(TREES.read_bytes()))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"t.jsonl.gz:\d+: expected "):
        read_source(path, "en")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST", 10_000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b'{"message_id": "' + b"x" * 50_000_000))
    with pytest.raises(ValueError, match="bomb.gz:1: expected at most 10,000 bytes in a line"):
        read_source(path, "en")


@given(st.data())
def test_no_damage_does_anything_but_read_or_refuse(tmp_path_factory, data):
    """A byte of a dump changed, a piece cut out, a line said twice."""
    whole = data.draw(st.sampled_from([TREES, MESSAGES])).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.sampled_from([at, at + 1, at + 40, len(whole)]))
    put = data.draw(st.sampled_from([b"", b"{", b'"', b"\xff", b"null", b"\n", whole[:5000]]))
    path = tmp_path_factory.mktemp("any") / "dump.jsonl"
    path.write_bytes(whole[:at] + put + whole[end:])
    try:
        items = read_source(path, "en").items
    except ValueError as error:
        assert re.match(r".*dump.jsonl:\d+: .*; ", str(error)), error
        assert len(str(error)) < 400 + len(str(path))
    else:
        # a message whose parent was lost begins a conversation of its own
        assert len(items) <= path.read_bytes().count(b'"message_id"')


def test_reasons_come_in_the_order_of_their_number():
    fates = build_report([], without_repeats(read_source(TREES, "en").items), {})["answers"][
        "fates"
    ]
    assert (
        all(a >= b for a, b in pairwise(list(fates.values())[1:])) and next(iter(fates)) == "kept"
    )
