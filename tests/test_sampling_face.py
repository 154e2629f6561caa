"""`python -m sampling`: files of prompts, mistakes with file and line, and the chat."""

import json
from pathlib import Path

import pytest
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from llama import encode_dialog, encode_prompt
from sampling.__main__ import chat, main
from sampling.batch import Decoding, Sample
from sampling.engine import generate, stream
from sampling.spread import Request
from sampling.talk import Talk

DECODING = Decoding(0.7, 0.9, 12, frozenset({tiny_tokenizer().eos_id}))
FLAGS = ["--max-new-tokens", "12", "--seed", "3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    llama.save(tiny_model(), tiny_tokenizer(), path)
    return str(path)


def written(path: Path, *rows: object) -> list[str]:
    """The flags that read these rows, and write beside them."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return ["--in", str(path), "--out", str(path.with_name("out.jsonl"))]


def out(path: Path) -> list[dict]:
    text = path.with_name("out.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_prompts_under_the_chat_template(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "a", "prompt": "Is it raining?"}, {"id": "b", "prompt": "Count."}]
    assert main([checkpoint, *written(path, *rows), "--n", "2", *FLAGS]) == 0
    requests = [
        Request(row["id"], encode_prompt(tiny_tokenizer(), row["prompt"]), 2) for row in rows
    ]
    samples = generate(tiny_model(), requests, DECODING, seed=3)
    assert out(path) == [
        {
            "id": f"{request.id}.{k}",
            "prompt_id": request.id,
            "k": k,
            "text": tiny_tokenizer().decode(sample.token_ids).strip(),
            "token_ids": sample.token_ids,
            "finished": sample.finished,
        }
        for request, several in zip(requests, samples)
        for k, sample in enumerate(several)
    ]


def test_raw_token_ids_are_continued_as_they_are(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ids = encode_prompt(tiny_tokenizer(), "Is it raining?")
    row = {"id": "a", "token_ids": ids, "prompt": "something else"}
    assert main([checkpoint, *written(path, row), "--raw", *FLAGS]) == 0
    [[sample]] = generate(tiny_model(), [Request("a", ids)], DECODING, seed=3)
    assert [made["token_ids"] for made in out(path)] == [sample.token_ids]


@pytest.mark.parametrize(
    ("rows", "flags", "complaint"),
    [
        (['{"id": "a"}'], [], "rows.jsonl:1: expected a field 'prompt'"),
        (['{"id": "a", "prompt": "x"}', "", ""], [], "rows.jsonl:2: expected a JSON object"),
        (['{"id": "a", "prompt": 3}'], [], "rows.jsonl:1: expected 'prompt' to be a string"),
        (
            ['{"id": "a", "prompt": "\\ud800"}'],
            [],
            "rows.jsonl:1: expected 'prompt' to be a string",
        ),
        (['{"id": "a", "prompt": "x"}'] * 2, [], "rows.jsonl:2: expected an id of its own"),
        ([], [], "rows.jsonl:1: expected at least one row"),
        (['{"id": "a", "token_ids": []}'], ["--raw"], "rows.jsonl:1: expected 'token_ids' to be"),
        (['{"id": "a", "token_ids": [true]}'], ["--raw"], "rows.jsonl:1: expected 'token_ids'"),
        (
            ['{"id": "a", "token_ids": [1, 400]}'],
            ["--raw"],
            "rows.jsonl:1: expected token ids below",
        ),
        (['{"id": "a", "prompt": "x"}'], ["--top-p", "0"], "top_p is 0.0"),
        (['{"id": "a", "prompt": "x"}'], ["--n", "0"], "wants 0 samples"),
    ],
)
def test_a_mistake_is_one_line(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows, flags, complaint
) -> None:
    path = tmp_path / "rows.jsonl"
    assert main([checkpoint, *written(path, *rows), *FLAGS, *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and complaint in error
    assert not path.with_name("out.jsonl").exists()


def test_a_prompt_that_fills_the_context_is_refused_by_name_and_the_rest_goes_on(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": "long", "prompt": "la " * 300}, {"id": "b", "prompt": "Is it raining?"}]
    assert main([checkpoint, *written(path, *rows), *FLAGS]) == 1
    why = "a prompt of 607 tokens fills the context of 256"
    assert capsys.readouterr().err.splitlines()[-1] == f"refused: 'long': {why}"
    refused, served = out(path)
    assert refused["refused"] == why and not refused["token_ids"] and not refused["finished"]
    assert served["token_ids"] and "refused" not in served


def test_a_target_that_cannot_be_is_told_before_the_model_is_read(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("sampling.__main__.load_replica", None)
    path = tmp_path / "rows.jsonl"
    flags = written(path, {"id": "a", "prompt": "x"})
    assert main([checkpoint, *flags, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is a directory: name a file in it\n"
    before = path.read_bytes()
    assert main([checkpoint, *flags, "--out", str(path)]) == 2
    told = f"error: {path} is the file that is read: choose another --out\n"
    assert capsys.readouterr().err == told and path.read_bytes() == before


def test_missing_files_are_one_line(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.jsonl")
    assert main([checkpoint, "--in", missing, "--out", missing]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    flags = written(tmp_path / "rows.jsonl", {"id": "a", "prompt": "x"})
    assert main([str(tmp_path / "no-model"), *flags]) == 2
    assert "no-model" in capsys.readouterr().err


def test_logps_stand_beside_the_tokens(checkpoint: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "prompt": "Is it raining?"}\n')
    command = [checkpoint, "--in", str(source), "--out", str(target), *FLAGS]
    assert main(command) == 0
    [plain] = map(json.loads, target.read_text().splitlines())
    assert main([*command, "--logps"]) == 0
    [row] = map(json.loads, target.read_text().splitlines())
    logps = row.pop("logps")
    assert row == plain and len(logps) == len(row["token_ids"]) and max(logps) <= 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--in", "x"],
        ["--out", "x"],
        ["--raw"],
        ["--logps"],
        ["--in", "x", "--out", "y", "--system", "s"],
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["model", *flags])
    assert left.value.code == 2


def talk(**changed) -> Talk:
    return Talk(tiny_model(), tiny_tokenizer(), DECODING, 3, **changed)


def test_talk_remembers_what_was_said() -> None:
    one = talk(system="be brief")
    first, _ = one.answer("Is it raining?")
    second, _ = one.answer("And now?")
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And now?"},
    ]
    ids, _ = encode_dialog(tiny_tokenizer(), messages)
    [[sample]] = generate(tiny_model(), [Request("turn 2", ids)], DECODING, seed=3)
    assert second == tiny_tokenizer().decode(sample.token_ids).strip()


def test_talk_says_its_answer_piece_by_piece_and_no_half_characters(monkeypatch) -> None:
    pieces: list[str] = []
    answer, _ = talk().answer("Is it raining?", pieces.append)
    assert "".join(pieces) == answer and sum(map(bool, pieces)) > 2
    bytes_of = [3 + byte for byte in "é ö".encode()]  # the tokenizer's byte tokens
    grown = [Sample(bytes_of[:n], finished=n == len(bytes_of)) for n in range(1, 6)]
    monkeypatch.setattr("sampling.talk.stream", lambda *args, **how: iter(grown))
    pieces.clear()
    assert talk().answer("Say é ö.", pieces.append) == ("é ö", True)
    assert pieces == ["é", "", " ö", ""]


def test_talk_forgets_the_oldest_turns_when_the_context_is_full() -> None:
    one = talk()
    for _ in range(8):
        one.answer("Is it raining, or is it not raining? Please count the words of this line.")
    assert len(one.said) == 16
    with pytest.raises(ValueError, match="the model reads 256: say less"):
        one.answer("la " * 300)
    assert len(one.said) == 16
    one.answer("Count.")


def typed(monkeypatch: pytest.MonkeyPatch, *lines: object) -> None:
    """What comes from the keyboard: lines, exceptions, and at last the end of the input."""
    waiting = iter([*lines, EOFError()])

    def read(prompt: str) -> str:
        line = next(waiting)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


def test_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed(monkeypatch, "", "Is it raining?", KeyboardInterrupt(), "la " * 300)
    one, other = talk(), talk()
    chat(one)
    text, finished = other.answer("Is it raining?")
    printed = capsys.readouterr().out
    assert printed.startswith(text if finished else f"{text} …")
    assert len(text) > 2
    assert "Ctrl-D leaves" in printed and "say less" in printed
    assert len(one.said) == 2


def test_ctrl_c_stops_the_answer_without_leaving(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "one", "two")
    stops = iter([True, False])

    def interrupted(*args, **kwargs):
        if next(stops):
            raise KeyboardInterrupt
        return stream(*args, **kwargs)

    monkeypatch.setattr("sampling.talk.stream", interrupted)
    one = talk()
    chat(one)
    assert [message["content"] for message in one.said[::2]] == ["two"]


def test_without_an_input_the_chat_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `<&-`: Python then has none, and `input` no word for it but RuntimeError."""
    monkeypatch.setattr("sys.stdin", None)
    chat(talk())


def test_the_chat_face(checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    typed(monkeypatch, "Is it raining?")
    assert main([checkpoint, "--max-new-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip()
