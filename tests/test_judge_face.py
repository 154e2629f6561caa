"""`python -m judge`: a file of answers, judged; mistakes with file and line."""

import json
from pathlib import Path

import pytest
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from judge import judge_responses, load_rubric
from judge.__main__ import main, told
from sampling.complete import Completer

FLAGS = ["--rubric", "additive_short", "--k", "2", "--max-new-tokens", "8", "--seed", "3"]
ROWS = [
    {"id": "a", "prompt": "Is it raining?", "response": "No."},
    {"id": "b", "prompt": "Count.", "response": ""},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    llama.save(tiny_model(), tiny_tokenizer(), path)
    return str(path)


def written(path: Path, *rows: dict) -> list[str]:
    """The flags that read these rows, and write beside them."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return ["--in", str(path), "--out", str(path.with_name("out.jsonl"))]


def test_answers_are_judged(checkpoint: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    assert main([checkpoint, *written(path, *ROWS), *FLAGS]) == 0
    text = path.with_name("out.jsonl").read_text(encoding="utf-8")
    how = {"k": 2, "seed": 3, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8}
    completer = Completer(tiny_model(), tiny_tokenizer(), progress=False)
    expected = judge_responses(completer, load_rubric("additive_short"), ROWS, **how)
    assert [json.loads(line) for line in text.split("\n") if line] == expected
    assert [row["id"] for row in expected] == ["a.0", "a.1", "b.0", "b.1"]
    assert "4 judgements: " in capsys.readouterr().err
    assert main([checkpoint, *written(path, *ROWS), *FLAGS, "--expected"]) == 0
    again = [json.loads(line) for line in path.with_name("out.jsonl").read_text().splitlines()]
    assert [(row["text"], row["said"]) for row in again] == [
        (row["text"], row["score"]) for row in expected
    ]


@pytest.mark.parametrize(
    ("row", "flags", "complaint"),
    [
        ({"id": "a", "prompt": "x"}, [], "rows.jsonl:1: expected a field 'response'"),
        ({"id": "a", "prompt": "x", "response": None}, [], "rows.jsonl:1: expected 'response'"),
        (ROWS[0] | {"response": "la " * 300}, [], "rows.jsonl:1: expected fewer than 256 tokens"),
        (ROWS[0], ["--rubric", "nowhere.txt"], "nowhere.txt: no such rubric; give one of additive"),
    ],
)
def test_a_mistake_is_one_line(
    checkpoint: str, tmp_path: Path, capsys, row: dict, flags: list[str], complaint: str
) -> None:
    path = tmp_path / "rows.jsonl"
    assert main([checkpoint, *written(path, row), *FLAGS, *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and complaint in error
    assert not path.with_name("out.jsonl").exists()


def test_a_target_that_cannot_be_is_told_before_the_model_is_read(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("judge.__main__.load_replica", None)
    path = tmp_path / "rows.jsonl"
    flags = written(path, *ROWS)
    assert main([checkpoint, *flags, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is a directory: name a file in it\n"
    before = path.read_bytes()
    assert main([checkpoint, *flags, "--out", str(path)]) == 2
    told = f"error: {path} is the file that is read: choose another --out\n"
    assert capsys.readouterr().err == told and path.read_bytes() == before


def test_what_is_told_in_the_end() -> None:
    rows = [
        {"score": 4.0, "finished": True},
        {"score": None, "finished": True},
        {"score": None, "finished": False},
    ]
    expected = "3 judgements: 1 with a score, 1 without one, 1 cut off by --max-new-tokens"
    assert told(rows) == expected
