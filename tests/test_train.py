"""`train.py` as a person runs it: the smallest loop, twice, and every mistake in one line."""

import ast
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from smallest_run import ONE_THREAD, ROOT, SMALLEST, train

from loop.command import run_command
from loop.run import Run
from loop.settings import Judging, Prompts, Settings
from seed.read import Seed
from seed.start import Start, open_start
from train import SelfRewarding

VARYING = ("manifest.json", "report.json", "report.html", "lock", ".lock")  # they hold seconds


def contents(run):
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in (*VARYING, "train.jsonl")
    }


def test_the_smoke_preset_runs_to_m3_and_tells_both_axes(tmp_path):
    run = tmp_path / "run"
    done = train("--run", run, sizes=["--preset", "smoke"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "M3" / "model.safetensors").is_file()
    for words in ("memory of a rank", "Following instructions", "Judging", "M3", "complete"):
        assert words in done.stdout


def test_a_second_run_gives_the_same_bytes(finished, tmp_path):
    done = train("--run", tmp_path / "second")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = contents(finished), contents(tmp_path / "second")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_another_seed_gives_other_bytes(finished, tmp_path):
    done = train("--run", tmp_path / "r", "--seed", 1, "--iterations", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    file = "M1/model.safetensors"
    assert (finished / file).read_bytes() != (tmp_path / "r" / file).read_bytes()


def test_running_a_finished_run_again_changes_nothing(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = contents(run)
    done = train("--run", run)
    assert done.returncode == 0 and "complete" in done.stdout
    assert contents(run) == before


def test_the_loop_runs_with_adapters_in_both_trainings(tmp_path):
    """What has none is in M2 what it was in M1, to the last bit; the rest is not."""
    changes = ["sft.lora_rank=4", "dpo.lora_rank=4", "sft.learning_rate=1e-2", "evaluation.drift=0"]
    flags = [word for change in changes for word in ("--set", change)]
    done = train("--run", tmp_path / "r", *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("adapters of rank 4 learn") == 2  # in SFT and in DPO
    weights = [load_file(tmp_path / f"r/M{t}/model.safetensors") for t in (1, 2)]
    moved = {name.split(".")[-2] for name in weights[0]
             if not torch.equal(weights[0][name], weights[1][name])}  # fmt: skip
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_an_interrupted_run_goes_on_to_the_same_bytes(finished, tmp_path):
    command = [sys.executable, "train.py", *SMALLEST, "--run", str(tmp_path / "r")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=pipe, stderr=pipe, text=True
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "r/M1/responses.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in out
    assert not (tmp_path / "r" / "M2").exists()
    done = train("--run", tmp_path / "r")
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(tmp_path / "r") == contents(finished)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--iteration", "3"], ["--iteration", "--iterations"]),
        (["--preset", "smok"], ["smok", "smoke"]),
        (["--config", "nowhere.toml"], ["nowhere.toml"]),
        (["--set", "dpo.betta=1"], ["dpo.betta", "dpo.beta"]),
        (["--model", "nowhere"], ["nowhere"]),
        (["--model", "tests"], ["config.json"]),
        (["--seed-data", "nowhere"], ["nowhere", "ift.jsonl"]),
        (["--iterations", "0"], ["iterations", "at least 1"]),
        (["--set", "prompts.writer=nowhere"], ["nowhere", "no such file or directory"]),
        (["--set", "judging.rubric=nowhere"], ["nowhere: no such rubric", "additive_short"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = [*SMALLEST, "--run", str(tmp_path / "run"), *flags]
    assert run_command(open_start, SelfRewarding, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


def test_a_bad_row_is_named_by_file_and_line(tmp_path):
    for name in ("ift", "eft", "ranked", "held_out"):
        source = ROOT / "seed/world/data" / f"{name}.jsonl"
        (tmp_path / f"{name}.jsonl").write_bytes(source.read_bytes())
    with open(tmp_path / "eft.jsonl", "a") as file:
        file.write('{"id": "x"}\n')
    line = len((tmp_path / "eft.jsonl").read_text().splitlines())
    done = train("--run", tmp_path / "run", "--seed-data", tmp_path)
    assert done.returncode == 2
    assert f"eft.jsonl:{line}:" in done.stderr


def test_practice_without_ranked_answers_is_refused_at_once(tmp_path):
    for name in ("ift", "eft", "ranked", "held_out"):
        source = ROOT / "seed/world/data" / f"{name}.jsonl"
        (tmp_path / f"{name}.jsonl").write_bytes(source.read_bytes())
    flags = ("--run", tmp_path / "run", "--seed-data", tmp_path)
    done = train(*flags)
    assert done.returncode == 2 and done.stdout == ""
    assert "eft_ranked.jsonl" in done.stderr and "judging.practice=0" in done.stderr
    mended = ("--set", "judging.practice=0", "--set", "judging.rubric=nowhere")
    assert "no such rubric" in train(*flags, *mended).stderr  # not: the directory is taken


def test_a_directory_of_another_configuration_is_refused_with_the_difference(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    done = train("--run", run, "--set", "dpo.beta=0.2")
    assert done.returncode == 2
    assert "dpo.beta" in done.stderr and "0.1" in done.stderr and "0.2" in done.stderr


def uses_of_truth(source):
    """The functions in which an attribute `truth` is read."""
    return {
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "truth"
    }


def test_the_loop_looks_at_the_truth_in_its_evaluation_alone():
    source = (ROOT / "train.py").read_text()
    assert uses_of_truth(source) == {"evaluate"}
    peek = "def peek(self):\n        self.given.truth\n\n    def pair("
    cheating = source.replace("def pair(", peek)
    assert uses_of_truth(cheating) == {"evaluate", "peek"}


@pytest.mark.parametrize(("ends_at", "last"), [(None, 4), (3, 3), (1, 1)])
def test_the_loop_goes_on_until_its_evaluation_says_that_it_ended(ends_at, last):
    loop = object.__new__(SelfRewarding)
    loop.run, loop.models, loop.first = None, SimpleNamespace(sft=lambda *args: None), 1
    loop.given, loop.settings = SimpleNamespace(model=None), Settings(iterations=4)
    loop.evaluation, steps = SimpleNamespace(ended=False), []
    loop.seed_examples = lambda t: []
    loop.improve = lambda t: steps.append(("improve", t))

    def evaluate(t):
        steps.append(("evaluate", t))
        loop.evaluation.ended = t == ends_at

    loop.evaluate = evaluate
    assert loop.train() == last
    expected = [("evaluate", 1)]
    for t in range(1, last):
        expected += [("improve", t), ("evaluate", t + 1)]
    assert steps == expected


class Watched:
    """Stands for the models: remembers which is trained from which, on how much."""

    def __init__(self):
        self.events = []

    def complete(self, path):
        return path

    def sft(self, name, start, examples, how):
        self.events.append((name, "SFT of", str(start), len(examples)))

    def dpo(self, name, start, pairs, replay, how):
        self.events.append((name, "DPO of", start.name, len(pairs), len(replay)))


@pytest.mark.parametrize("writer", ["base", "current"])
def test_every_step_of_iteration_t_is_done_by_its_model(writer, tmp_path, alone, monkeypatch):
    """Not by the base again, nor by the model before: not one of the five."""
    models, rank = Watched(), [{"text": "x", "rank": 0}, {"text": "y", "rank": 1}]

    def does(word, rows):
        def doing(complete, *args, **how):
            models.events.append((word, complete.name))
            return rows

        return doing

    scores = [("p.0", 5.0), ("p.1", 1.0)]
    made = {
        "write_prompts": [{"id": "p", "prompt": "say x"}],
        "respond_in_parts": [
            [
                {"id": f"p.{k}", "prompt_id": "p", "k": k, "text": text, "finished": True}
                for k, text in enumerate("xy")
            ]
        ],
        "judge_in_parts": [
            [
                {"id": f"{of}.0", "response_id": of, "k": 0, "text": f"Score: {s}", "score": s}
                for of, s in scores
            ]
        ],
    }
    for name, rows in made.items():
        monkeypatch.setattr(f"train.{name}", does(name, rows))
    monkeypatch.setattr("loop.practice.make_eft", lambda *args, **how: ([], {}))
    row = {"id": "1", "prompt": "i", "response": "a", "judgement": "Score: 5", "score": 5}
    ranked = [{"id": "r", "prompt": "q", "responses": rank}]
    seed = Seed(ift=[row], eft=[row], ranked=ranked, held_out=[row], eft_ranked=ranked)
    given = Start(Path("base"), seed, {}, [], None)
    settings = Settings(
        prompts=Prompts(writer=writer), judging=Judging(rubric="additive_short", practice=1)
    )
    with Run.open(tmp_path, settings.identity(), alone) as run:
        loop = SelfRewarding(run, settings, given, models)
        loop.evaluation.measure = lambda name, before, complete, truth: models.events.append(
            ("measure", complete.name, before)
        )
        loop.train()
    expected = [("M1", "SFT of", "base", 2), ("measure", "M1", None)]
    for now, then in (("M1", "M2"), ("M2", "M3")):
        expected += [
            ("write_prompts", "base" if writer == "base" else now),
            ("respond_in_parts", now),
            ("judge_in_parts", now),
            ("judge_in_parts", now),  # practising
            (then, "DPO of", now, 1, 2),
            ("measure", then, now),
        ]
    assert models.events == expected
