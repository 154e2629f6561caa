"""What is impossible is told in one line, before anything is trained."""

from dataclasses import replace
from importlib import import_module
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from loop.command import run_command
from loop.fit import check_rubric, check_shown
from loop.options import parse_arguments, parse_command
from loop.settings import Choice, Judging, Prompts, Settings
from seed.read import Seed
from seed.start import Start

TEN = "scale: 0 to 10\n---\n{prompt} {response}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "-1"], "the flags: seed must be at least 0, found -1"),
        (["--set", "prompts.similarity=0"], "prompts.similarity must be above 0 and at most 1"),
        (["--set", "prompts.similarity=1.5"], "prompts.similarity must be above 0 and at most 1"),
        (
            ["--set", "prompts.max_words=2", "--set", "prompts.min_words=3"],
            "--set prompts.min_words=3: prompts.min_words must be at most max_words, 2, found 3",
        ),
        (["--set", "prompts.max_words=2"], "prompts.min_words must be at most max_words, 2"),
    ],
)
def test_an_impossible_setting_is_refused(flags: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="at") as caught:
        parse_arguments(flags)
    assert said in str(caught.value)
    assert parse_arguments(["--set", "prompts.similarity=1.0"]).prompts.similarity == 1


@pytest.mark.parametrize(
    "flag", ["--model", "--seed-data", "--config", "--prompt-model", "--run", "--preset", "--from"]
)
def test_an_empty_flag_is_refused_and_not_taken_for_the_embedded_world(flag: str) -> None:
    with pytest.raises(ValueError, match=f"^{flag} is empty: .* leave the flag out"):
        parse_command([flag, ""])


def started(directory: Path, *scores: float) -> Start:
    """A small model, and judgements with these scores."""
    llama.save(tiny_model(), tiny_tokenizer(), directory / "base")
    eft = [{"id": f"e{n}", "score": score} for n, score in enumerate(scores)]
    seed = Seed(ift=[], eft=eft, ranked=[], held_out=[], eft_ranked=[])
    inputs = {"model": directory / "base", "seed": directory}
    return Start(directory / "base", seed, inputs, [], None)


def test_expected_scores_need_a_tokenizer_that_can_tell_them(tmp_path: Path) -> None:
    given, ten = started(tmp_path), tmp_path / "ten.txt"
    ten.write_text(TEN)
    check_rubric(Settings(judging=Judging(expected=True)), given)
    check_rubric(Settings(judging=Judging(rubric=str(ten))), given)
    untold = Settings(judging=Judging(rubric=str(ten), expected=True))
    with pytest.raises(ValueError, match=r"base: .* 'Score: 0' to 'Score: 10' .*expected=false"):
        check_rubric(untold, given)
    (tmp_path / "base" / "config.json").unlink()
    check_rubric(untold, given)  # a finished run needs its base model no more
    judge = Choice(by="judge", judge=str(tmp_path / "judge"))
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "judge")
    with pytest.raises(ValueError, match="judge: the tokenizer writes"):
        check_rubric(Settings(judging=untold.judging, choice=judge), given)


def test_scores_of_the_seed_lie_on_the_rubrics_scale(tmp_path: Path) -> None:
    ten = tmp_path / "ten.txt"
    ten.write_text(TEN)
    given = started(tmp_path, 0, 4.5, 10)
    check_rubric(Settings(judging=Judging(rubric=str(ten))), given)
    with pytest.raises(
        ValueError, match=r"eft.jsonl:3: .* from 0 to 5 \(additive\), found 10; mend"
    ):
        check_rubric(Settings(), given)
    with pytest.raises(ValueError, match=r"eft.jsonl:1: .* from 1 to 5 \(multiple_choice\)"):
        check_rubric(Settings(judging=Judging(rubric="multiple_choice")), given)


def test_a_run_is_refused_before_it_begins(tmp_path: Path, capsys) -> None:
    given = started(tmp_path, 7)
    flags = ["--preset", "smoke", "--run", str(tmp_path / "run")]

    def never(*_):
        raise AssertionError("it was begun")

    assert run_command(lambda *_: given, never, flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/eft.jsonl:1: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_more_demonstrations_than_the_seed_has_are_refused(tmp_path: Path, capsys) -> None:
    given = started(tmp_path)
    given.seed.ift.extend({"id": f"i{n}", "prompt": "Name a fruit."} for n in range(3))
    given.seed.ift.append({"id": "long", "prompt": "word " * 200})
    check_shown(Settings(prompts=Prompts(n_seed=2, n_made=1)), given)
    many = Settings(prompts=Prompts(n_seed=3, n_made=1))
    with pytest.raises(ValueError, match=r"ift.jsonl: prompts.n_seed=3 .* 3 of 4 .* show fewer"):
        check_shown(many, given)
    check_shown(replace(many, iterations=1), given)
    flags = ["--preset", "smoke", "--run", str(tmp_path / "run"), "--set", "prompts.n_seed=1000"]
    assert run_command(lambda *_: given, lambda *_: pytest.fail("it was begun"), flags) == 2
    assert "prompts.n_seed=1000" in capsys.readouterr().err


@pytest.mark.parametrize("face", ["llama", "sampling", "judge", "dpo", "seed", "loop", "controls"])
def test_every_command_speaks_on_a_terminal_of_few_characters(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(said, encoding="ascii", write_through=True))
    main = import_module(f"{face}.__main__").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    print("–")
    assert ended.value.code == 0
    assert said.getvalue().startswith(b"usage: ") and said.getvalue().endswith(b"?\n")
