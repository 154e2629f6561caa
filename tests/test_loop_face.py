"""`python -m loop`: models of a finished run head to head, and answers exported to other tools."""

import json
from functools import cache
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_llama import tiny_model, tiny_tokenizer

import llama
from llama.parallel import Group
from llama.team import TeamLlama
from loop import __main__ as face
from loop.__main__ import main
from loop.compare import by_judge, judged, pairs_of
from loop.files import json_bytes, jsonl_bytes
from loop.finished import FinishedRun
from loop.settings import Evaluation, Judging, Settings

PROMPTS = [{"id": f"h{i}", "prompt": f"ask {i}"} for i in range(5)]
TEXTS = {"M1": "a b", "M2": "a b c d", "M10": "good one"}
POINTS = {"M1": [1, 1, 1, 1], "M2": [1, 1, 2, 0], "M10": [3, 3, 3, 3]}


def answers(name, points):
    rows = [
        {
            "id": f"h{i}.{k}.sampled", "prompt_id": f"h{i}", "k": k, "text": f"{TEXTS[name]} {k}",
            "mode": "sampled", "points": points and {"sum": POINTS[name][i]},
        }
        for i in range(4)
        for k in range(2)
    ]  # fmt: skip
    greedy = [row for row in rows if row["k"] == 0]
    return rows + [
        row | {"id": f"{row['id']}.greedy", "mode": "greedy", "text": TEXTS[name]} for row in greedy
    ]


@pytest.fixture
def run(tmp_path):
    """Four of five held-out prompts, answered by three models."""
    settings = Settings(judging=Judging(rubric="additive_short"), evaluation=Evaluation(4))
    root, seed = tmp_path / "run", tmp_path / "seed"
    seed.mkdir()
    (seed / "held_out.jsonl").write_bytes(jsonl_bytes(PROMPTS))
    config = {"settings": settings.identity(), "inputs": {"seed": {"path": str(seed)}}}
    for name in TEXTS:
        (root / name).mkdir(parents=True)
        (root / name / "eval_answers.jsonl").write_bytes(jsonl_bytes(answers(name, True)))
    (root / "config.json").write_bytes(json_bytes(config))
    return root


class Judge:
    """Prefers what is `good`; else whatever stands first, or, unable to read, nobody."""

    def __init__(self, reads=True):
        self.reads = reads

    def __call__(self, prompts, *, n, **how):
        return [[Said(self.verdict(prompt))] * n for prompt in prompts]

    def verdict(self, prompt):
        if not self.reads:
            return "hm"
        if "<answer A>" not in prompt:  # one answer alone, to be scored
            return f"Score: {4 if 'good' in prompt else 2}"
        return "Better: B" if "good" in prompt.split("<answer B>")[1] else "Better: A"


class Said:
    finished = True

    def __init__(self, text):
        self.text = text


@pytest.mark.parametrize("way", ["pairwise", "scores"])
def test_a_win_takes_both_orders(run, way):
    finished = FinishedRun(run)
    compare = by_judge(finished, Judge(), way)
    numbers, rows = judged(finished, "M10", "M1", compare)
    assert numbers["head_to_head"] == {"win": 4, "tie": 0, "loss": 0, "unread": 0}
    assert numbers["win_rate"] == 1.0 and numbers["lc_win_rate"] == pytest.approx(1.0)
    assert rows[0]["ours"] == "M10" and len(rows) == 4
    numbers, _ = judged(finished, "M1", "M10", compare)
    assert numbers["win_rate"] == 0.0
    numbers, _ = judged(finished, "M1", "M2", compare)  # the first place, or equal scores
    assert numbers["head_to_head"]["tie"] == 4 and numbers["win_rate"] == 0.5


def test_a_judge_that_cannot_be_read_decides_nothing(run):
    finished = FinishedRun(run)
    numbers, _ = judged(finished, "M10", "M1", by_judge(finished, Judge(reads=False), "scores"))
    assert numbers["head_to_head"]["unread"] == 4 and numbers["win_rate"] is None


def test_all_pairs_the_newest_first(run):
    finished = FinishedRun(run)
    assert pairs_of(finished, []) == [("M10", "M2"), ("M10", "M1"), ("M2", "M1")]
    assert pairs_of(finished, ["M1", "M2"]) == [("M1", "M2")]


def test_by_truth_the_samples_are_compared_one_by_one(run, tmp_path, capsys):
    flags = ["compare", str(run), "M2", "M1", "--by", "truth", "--out", str(tmp_path / "rows")]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:7] == ["M2", "–", "M1", "25.0%", "50.0%", "25.0%", "0"]
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["tie"] * 4 + ["win"] * 2 + ["loss"] * 2


def test_held_out_answers_are_exported(run, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["export", str(run / "M2"), "--to", "alpaca-eval", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert rows[1] == {"instruction": "ask 1", "output": "a b c d", "generator": "run/M2"}
    assert len(rows) == 4 and "4 answers of run/M2" in capsys.readouterr().out
    flags = ["--to", "mt-bench", "--name", "mine", "--out", str(out)]
    assert main(["export", str(run / "M10"), *flags]) == 0
    line = json.loads(out.read_text().splitlines()[0])
    assert (line["question_id"], line["model_id"]) == ("h0", "mine")
    assert line["choices"] == [{"index": 0, "turns": ["good one"]}]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["compare", "RUN/M1"], "config.json: cannot be read"),
        (["compare", "RUN", "M1"], "two models are needed to compare, found M1"),
        (["compare", "RUN", "M1", "M7", "--by", "truth"], "evaluated in this run: M1, M2, M10"),
        (["compare", "RUN", "M1", "M2", "--judge", "nowhere"], "nowhere"),
        (["compare", "RUN", "M1", "M2", "--sample-tp", "2"], "(machine.sample_tp) is 2, and a"),
        (["export", "RUN/M1", "--seed-data", "RUN"], "gone since the run began; say where: --seed"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path, capsys, flags, complaint):
    words = [word.replace("RUN", str(run)) for word in flags]
    if words[0] == "export":
        words += ["--to", "mt-bench", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and complaint in error[-1]


def test_a_target_that_cannot_be_is_told_before_the_work(run, monkeypatch, capsys):
    monkeypatch.setattr(face, "FinishedRun", None)
    for words in (["compare", f"{run}"], ["export", f"{run}/M1", "--to", "mt-bench"]):
        assert main([*words, "--out", f"{run}"]) == 2
        assert capsys.readouterr().err == f"error: {run} is a directory: name a file in it\n"


def test_the_questions_are_not_written_over(run, monkeypatch, capsys):
    monkeypatch.setattr(face, "read_questions", None)
    questions = f"{run}/config.json"
    words = ["export", f"{run}/M1", "--to", "mt-bench", "--prompts", questions, "--out", questions]
    assert main(words) == 2
    told = f"error: {questions} is the file that is read: choose another --out\n"
    assert capsys.readouterr().err == told


def test_a_config_that_is_none_is_told(run):
    (run / "config.json").write_text('{"settings": 3}')
    with pytest.raises(ValueError, match=r"config.json: not the config.json of a run; give"):
        FinishedRun(run)


@pytest.mark.parametrize("damage", ["half a line", "empty", "no mode", "one answer", "one truth"])
def test_damaged_answers_are_one_line_that_names_them(run, damage, capsys):
    path, rows = run / "M1" / "eval_answers.jsonl", answers("M1", True)
    whole = jsonl_bytes(rows)
    untold = [rows[0] | {"points": None}, *rows[1:]]
    path.write_bytes(
        {
            "half a line": whole[:-9],
            "empty": b"",
            "no mode": whole.replace(b"mode", b"made"),
            "one answer": jsonl_bytes(rows[1:]),
            "one truth": jsonl_bytes(untold),
        }[damage]
    )
    assert main(["compare", str(run), "M2", "M1", "--by", "truth"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {run if damage == 'one truth' else path}:" in line


def test_without_a_truth_there_is_nothing_to_compare_by_it(run, capsys):
    for name in ("M1", "M2"):
        (run / name / "eval_answers.jsonl").write_bytes(jsonl_bytes(answers(name, None)))
    assert main(["compare", str(run), "M1", "M2", "--by", "truth"]) == 2
    assert "no program knows the truth" in capsys.readouterr().err


def test_questions_are_answered_turn_after_turn(tmp_path, capsys):
    """The second answer is what the model says to the whole dialog so far."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    llama.save(model, tokenizer, tmp_path / "model")
    turns = ["Is it raining?", "And now?"]
    row = {"question_id": 81, "category": "writing", "turns": turns}
    (tmp_path / "q.jsonl").write_bytes(jsonl_bytes([row, {"id": "one", "prompt": "Count."}]))
    flags = ["--prompts", str(tmp_path / "q.jsonl"), "--max-new-tokens", "6"]
    flags += ["--out", str(tmp_path / "out.jsonl"), "--to"]
    assert main(["export", str(tmp_path / "model"), *flags, "mt-bench"]) == 0
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    said = first["choices"][0]["turns"]
    assert first["question_id"] == 81 and len(said) == 2 and second["question_id"] == "one"
    dialog = [
        {"role": "user", "content": turns[0]},
        {"role": "assistant", "content": said[0]},
        {"role": "user", "content": turns[1]},
    ]
    ids, _ = llama.encode_dialog(tokenizer, dialog)
    assert greedy(model, tokenizer, ids, 6) == said[1]
    assert greedy(model, tokenizer, llama.encode_prompt(tokenizer, turns[0]), 6) == said[0]
    assert main(["export", str(tmp_path / "model"), *flags, "alpaca-eval"]) == 2
    assert "question 81 has 2 turns" in capsys.readouterr().err


def test_a_question_that_fills_the_context_is_named_and_the_others_are_answered(tmp_path, capsys):
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    file, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    turns = {"short": ["Count."], "first": ["long " * 300, "And?"], "then": ["Hm?", "long " * 300]}
    file.write_bytes(jsonl_bytes({"id": name, "turns": said} for name, said in turns.items()))
    flags = ["--to", "mt-bench", "--prompts", str(file), "--max-new-tokens", "6"]
    assert main(["export", str(tmp_path / "model"), *flags, "--out", str(out)]) == 0
    rows = map(json.loads, out.read_text().splitlines())
    said = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
    assert {name: [bool(text) for text in said[name]] for name in turns} == {
        "short": [True], "first": [False, False], "then": [True, False]
    }  # fmt: skip
    refused = [line for line in capsys.readouterr().err.splitlines() if "refused" in line]
    assert [(line.split()[2], line[-17:]) for line in refused] == [
        ("'first':", "answer 1 is empty"), ("'first':", "answer 2 is empty"),
        ("'then':", "answer 2 is empty"),
    ]  # fmt: skip
    assert all(f"refused: {file}: " in line and "of 256;" in line for line in refused)


def greedy(model, tokenizer, ids, most):
    import torch

    new = []
    with torch.no_grad():
        while len(new) < most:
            token = int(model(torch.tensor([ids + new]))[0, -1].argmax())
            if token == tokenizer.eos_id:
                break
            new.append(token)
    return tokenizer.decode(new).strip()


# On several ranks


def answer_and_judge(run: str, model: str, out: str, *team: str) -> None:
    """Exports, compares, and notes how the models were held that it sampled from."""
    opened, held = face.opened, []
    face.start, Group.stop = cache(face.start), lambda group: None  # both on the same ranks

    def noted(*how):
        found = opened(*how)
        held.append([isinstance(found[0], TeamLlama), found[2].size])
        return found

    face.opened = noted
    words = ["--prompts", f"{run}/q.jsonl", "--max-new-tokens", "6", "--to", "alpaca-eval"]
    assert main(["export", model, *words, *team, "--out", f"{out}/export"]) == 0
    words = ["--judge", model, *team, "--out", f"{out}/compare"]
    assert main(["compare", run, "M10", "M1", *words]) == 0
    Path(out, "held").write_text(json.dumps(held))


def test_ranks_answer_and_judge_what_one_process_does(run, tmp_path, monkeypatch):
    """Two ranks that hold one replica together."""
    for of, name in ((face, "opened"), (face, "start"), (Group, "stop")):
        monkeypatch.setattr(of, name, getattr(of, name))  # the one process puts them back
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    asked = [{"id": f"{i}", "prompt": "Go" * (i + 1)} for i in range(5)]
    (run / "q.jsonl").write_bytes(jsonl_bytes(asked))
    made = {}
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}"
        out.mkdir()
        words = [str(run), str(tmp_path / "model"), str(out), "--sample-tp", f"{ranks}"]
        if ranks == 1:
            answer_and_judge(*words)
        else:
            assert run_ranks(answer_and_judge, ranks, *words) == [0] * ranks
        made[ranks] = [(out / name).read_bytes() for name in ("export", "compare")]
        assert json.loads((out / "held").read_text()) == [[ranks > 1, ranks]] * 2
    assert made[1] == made[2]
    assert len({row["output"] for row in json.loads(made[1][0])}) > 1
