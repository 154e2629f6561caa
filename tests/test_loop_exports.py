"""Files for other tools have exactly the fields that these read; questions come in three forms."""

import json

import pytest

from loop.exports import alpaca_eval, held_out, mt_bench, read_questions

ANSWERED = [
    {"id": 81, "turns": ["say \u2028 x", "and y"], "answers": ["x", "y"]},
    {"id": "test-1", "turns": ["z?"], "answers": ['"ž"'], "dataset": "helpful_base"},
]
ALPACA = {"instruction": str, "output": str, "generator": str}
CHOICE = {"index": int, "turns": list}
NAMES = {"question_id": (int, str), "answer_id": str, "model_id": str}
MT_BENCH = NAMES | {"choices": list, "tstamp": float}


def fits(row, fields):
    return row.keys() == fields.keys() and all(isinstance(row[k], fields[k]) for k in fields)


def test_alpaca_evals_fields():
    first, second = json.loads(alpaca_eval(ANSWERED, "run/M3"))
    assert fits(first, ALPACA) and fits(second, ALPACA | {"dataset": str})
    assert first == {"instruction": "say \u2028 x", "output": "x", "generator": "run/M3"}
    assert second["output"] == '"ž"' and second["dataset"] == "helpful_base"


def test_mt_benchs_fields():
    lines = mt_bench(ANSWERED, "M3", 1700000000.5).decode().split("\n")
    assert lines.pop() == ""  # each line ends
    first, second = map(json.loads, lines)
    for row in (first, second):
        assert fits(row, MT_BENCH) and fits(row["choices"][0], CHOICE) and len(row["choices"]) == 1
    assert first["question_id"] == 81 and first["choices"][0]["turns"] == ["x", "y"]
    assert second["choices"] == [{"index": 0, "turns": ['"ž"']}]


def test_an_answers_id_is_its_own_and_stays():
    def ids(name, rows=ANSWERED):
        return [json.loads(line)["answer_id"] for line in mt_bench(rows, name, 0.5).splitlines()]

    assert ids("M3") == ids("M3") and len({*ids("M3"), *ids("M2")}) == 4
    assert ids("M3", [ANSWERED[0] | {"answers": ["x", "other"]}])[0] != ids("M3")[0]


def test_held_out_answers_are_questions_of_one_turn():
    found = held_out([{"id": "a", "prompt": "p"}], {"a": "text", "b": "other"})
    assert found == [{"id": "a", "turns": ["p"], "answers": ["text"]}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"id": "a", "prompt": "p"}\n', [{"id": "a", "turns": ["p"]}]),
        (
            '{"question_id": 81, "category": "writing", "turns": ["p", "q"]}\n',
            [{"id": 81, "turns": ["p", "q"]}],
        ),
        (
            '[{"dataset": "koala", "instruction": "p", "output": "o"}, {"instruction": "q"}]',
            [{"id": "0", "turns": ["p"], "dataset": "koala"}, {"id": "1", "turns": ["q"]}],
        ),
    ],
)
def test_questions_in_their_three_forms(tmp_path, text, expected):
    (tmp_path / "q").write_text(text)
    assert read_questions(tmp_path / "q") == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"id": "a"}\n', r":1: expected one of the fields prompt, instruction, turns; add"),
        ('{"id": "a", "prompt": "p"}\n{"id": "a", "prompt": "q"}\n', r":2: .*'a' as in line 1"),
        ('{"question_id": 1, "turns": []}\n', r":1: expected 'turns' to be a list of one or more"),
        ('{"id": [1], "prompt": "p"}\n', r":1: expected 'id' to be a string or a whole"),
        ('[{"instruction": "p"}, 7]', r":2: expected a JSON object; mend"),
        ('[{"instruction": "p"}', r": expected a JSON list .*; fetch"),
        ("[]", r":1: expected at least one question, found an empty list; add"),
        ("", r":1: expected at least one row, found an empty file"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_named_with_its_line(tmp_path, text, complaint):
    (tmp_path / "q").write_text(text)
    with pytest.raises(ValueError, match=f"q{complaint}"):
        read_questions(tmp_path / "q")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: cannot be read .*; check the path"):
        read_questions(tmp_path / "nowhere")
