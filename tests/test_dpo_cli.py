"""`python -m dpo`: a model in, a trained one out; one line and code 2 for what a user can mend."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer

from dpo import train_sft
from dpo.__main__ import main, read_sft
from llama import fingerprint, load, save

Rows = list[dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft_rows(n: int = 6) -> Rows:
    return [{"id": str(i), "prompt": f"Count {i}", "response": f"{i} words."} for i in range(n)]


def pair_rows(n: int = 6) -> Rows:
    return [
        {"id": str(i), "prompt": f"Count {i}", "chosen": f"{i} words.", "rejected": "no"}
        for i in range(n)
    ]


def run(model: Path, *arguments: object) -> int:
    fast = ("--batch-size", 3, "--dropout", 0.0, "--learning-rate", 0.001)
    return main([str(x) for x in (model, *fast, *arguments)])


def test_pairs_make_a_model_that_prefers_the_chosen(model: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "pairs.jsonl", pair_rows()), tmp_path / "out"
    assert run(model, "--pairs", data, "--out", out, "--epochs", 8) == 0
    trained, _ = load(out)
    assert fingerprint(trained) != fingerprint(tiny_model())
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert len(records) == 16 and records[0]["margin"] == 0 and records[-1]["margin"] > 0.1
    assert list(out.glob("training.*")) == []


def test_the_loss_is_chosen_by_name(model: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "pairs.jsonl", pair_rows()), tmp_path / "out"
    assert run(model, "--pairs", data, "--out", out, "--loss", "ipo", "--beta", 0.5) == 0
    first = json.loads((out / "train.jsonl").read_text().splitlines()[0])
    assert first["loss"] == 1  # (0 - 1/(2 · 0.5))²


def test_sft_rows_make_a_model_that_says_them(model: Path, tmp_path: Path) -> None:
    rows = sft_rows()
    rows[0]["system"] = "You count."
    data, out = write(tmp_path / "sft.jsonl", rows), tmp_path / "out"
    assert run(model, "--sft", data, "--out", out, "--epochs", 5) == 0
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert load(out)[1].encode("Count") == tiny_tokenizer().encode("Count")


def test_replay_joins_the_pairs(model: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", pair_rows())
    rows, out = write(tmp_path / "sft.jsonl", sft_rows()), tmp_path / "out"
    arguments = ("--pairs", pairs, "--out", out, "--replay", rows)
    assert run(model, *arguments, "--replay-weight", 0.5, "--max-steps", 1) == 0
    (record,) = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert "replay_nll" in json.loads(record)


def test_a_layout_for_short_memory_is_told_and_trains(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "pairs.jsonl", pair_rows()), ("--out", tmp_path / "out")
    small = ("--offload", "--recompute", "selective", "--moments", "bfloat16")
    assert run(model, "--pairs", data, *out, "--max-steps", 1, *small) == 0
    told = capsys.readouterr().out
    assert "on 1 rank (" in told and "waiting in the machine's memory; computed in float32" in told
    assert "3 pairs a step, passes of at most 8,192 tokens a rank" in told
    assert fingerprint(load(tmp_path / "out")[0]) != fingerprint(tiny_model())


def test_the_paper_s_rates_are_the_defaults(model: Path, tmp_path: Path) -> None:
    for name, rows, rate in (("sft", sft_rows(), 5.5e-6), ("pairs", pair_rows(), 1e-6)):
        data, out = write(tmp_path / f"{name}.jsonl", rows), tmp_path / name
        assert main([str(model), f"--{name}", str(data), "--out", str(out)]) == 0
        first = json.loads((out / "train.jsonl").read_text().splitlines()[0])
        assert first["learning_rate"] == rate


def test_bfloat16_computes_in_it_and_keeps_fp32(model: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "sft.jsonl", sft_rows(3)), tmp_path / "out"
    arguments = [model, "--bfloat16", "--sft", data, "--out", out]
    script = (sys.executable, "-W", "error", "-m", "dpo")
    done = subprocess.run([*script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {weight.dtype for weight in load(out)[0].parameters()} == {torch.float32}


def pairs_with(**changes: Any) -> Rows:
    return [*pair_rows(2), {"id": "9", "prompt": "p", "chosen": "a", "rejected": "b"} | changes]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (pairs_with(rejected="a"), "pairs.jsonl:3: chosen and rejected are the same text"),
        (pairs_with(chosen=" a", rejected="a "), "pairs.jsonl:3: chosen and rejected are the same"),
        (pairs_with(chosen=None), "pairs.jsonl:3: expected 'chosen' to be a string, found None"),
        (pairs_with(chosen="\ud800"), "pairs.jsonl:3: expected 'chosen' to be a string"),
        (pairs_with(id="1"), "pairs.jsonl:3"),
        (pairs_with(prompt="word " * 400), "pairs.jsonl:3: prompt and chosen are"),
        ([{"id": "1", "prompt": "p", "chosen": "a"}], "pairs.jsonl:1: expected a field 'rejected'"),
        ([], "pairs.jsonl:1: expected at least one row"),
    ],
)
def test_bad_data_is_one_line_with_file_and_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Rows, complaint: str
) -> None:
    data = write(tmp_path / "pairs.jsonl", rows)
    assert run(model, "--pairs", data, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and complaint in line
    assert not (tmp_path / "out").exists()


def test_a_profile_is_a_table_and_a_trace_beside_the_model(model: Path, tmp_path: Path) -> None:
    data, out = write(tmp_path / "pairs.jsonl", pair_rows()), tmp_path / "out"
    assert run(model, "--pairs", data, "--out", out, "--epochs", 2, "--profile") == 0
    names = {path.name for path in (out / "telemetry").iterdir()}
    assert names == {"profile.txt", "profile.trace.json.gz"}
    assert "tokens/s" in (out / "telemetry" / "profile.txt").read_text()


def test_curves_without_their_package_are_refused_before_anything_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    data, out = write(tmp_path / "pairs.jsonl", pair_rows()), tmp_path / "out"
    assert run(model, "--pairs", data, "--out", out, "--tensorboard") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tensorboard needs the package tensorboard" in line
    assert not out.exists()


def test_bad_arguments_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "pairs.jsonl", pair_rows())
    there = ("--pairs", data, "--out", model)
    sft = ("--sft", write(tmp_path / "sft.jsonl", sft_rows()), "--out", tmp_path / "out")
    out = ("--pairs", data, "--out", tmp_path / "out")
    for arguments, complaint in (
        (there, "holds a model already"),
        ((*out, "--beta", 0), "beta must be above 0"),
        ((*out, "--loss", "dop"), "loss must be one of dpo, cdpo,"),
        ((*out, "--gamma", 0.5), "gamma means nothing with loss dpo"),
        ((*out, "--replay", data), "--replay and --replay-weight go together"),
        ((*out, "--replay-weight", 1), "--replay and --replay-weight go together"),
        ((*out, "--seed", -1), "--seed must be at least 0, found -1"),
        ((*sft, "--loss", "ipo", "--beta", 7), "--loss means nothing with --sft"),
        ((*sft, "--nll-weight", 0), "--nll-weight means nothing with --sft"),
        ((*sft, "--replay", data, "--replay-weight", 1), "--replay means nothing with --sft"),
        (("--pairs", tmp_path / "none.jsonl", "--out", tmp_path / "out"), "none.jsonl"),
    ):
        assert run(model, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and complaint in line
    assert run(tmp_path, *out) == 2
    assert "no checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(model, *out, "--sft", data)
    with pytest.raises(SystemExit, match="2"):
        run(model, "--out", tmp_path)


@pytest.mark.parametrize("name", ["train.jsonl", "tokenizer.json", "model-backup.safetensors"])
def test_a_directory_of_something_else_stays_as_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data, out = write(tmp_path / "sft.jsonl", sft_rows()), tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    assert run(model, "--sft", data, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {out}: expected no directory") and "another --out" in line
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [(name, b"mine")]


def test_a_run_that_was_stopped_before_its_first_save_begins_anew(
    model: Path, tmp_path: Path
) -> None:
    data, out = write(tmp_path / "sft.jsonl", sft_rows()), tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("1\n")
    (out / "train.jsonl").write_text("of the stopped run\n")
    assert run(model, "--sft", data, "--out", out, "--epochs", 1) == 0
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert len(records) == 2


def test_a_launch_that_cannot_work_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "sft.jsonl", sft_rows())
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(model, "--sft", data, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: WORLD_SIZE is 2 but RANK is not set")


def test_a_second_run_into_the_same_directory_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "sft.jsonl", sft_rows()), tmp_path / "out"
    first, second = ((model, "--sft", data, "--out", out) for _ in range(2))
    codes = []

    def training(*how: Any, **more: Any) -> Any:
        if not codes:
            codes.append(run(*second))
        return train_sft(*how, **more)

    monkeypatch.setattr("dpo.__main__.train_sft", training)
    assert run(*first) == 0 and codes == [2]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    words = f"process {os.getpid()}) is working in this directory; wait for it, or take another"
    assert len(errors) == 1 and f"{words} directory: --out NEW" in errors[0]
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_a_run_that_ended_just_before_the_lock_was_free_is_not_trained_over(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "sft.jsonl", sft_rows()), tmp_path / "out"

    def slow(*how: Any) -> Any:
        save(tiny_model(), tiny_tokenizer(), out)
        return read_sft(*how)

    monkeypatch.setattr("dpo.__main__.read_sft", slow)
    assert run(model, "--sft", data, "--out", out) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert fingerprint(load(out)[0]) == fingerprint(tiny_model())


def test_a_stopped_run_goes_on_with_the_same_command(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo import descent

    data = write(tmp_path / "sft.jsonl", sft_rows())
    same = ("--sft", data, "--save-every", 1, "--epochs", 3, "--out")
    assert run(model, *same, tmp_path / "whole") == 0
    usual = descent.Descent._step

    def interrupted(self: descent.Descent, step: int, *how: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return usual(self, step, *how)

    with monkeypatch.context() as patch:
        patch.setattr(descent.Descent, "_step", interrupted)
        assert run(model, *same, tmp_path / "out") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert run(model, *same, tmp_path / "out") == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
