"""The GPU's training bench in miniature, on the CPU; its formula and its plan by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu_training
from bench.gpu_training import LITTLE, TASKS, Task, made, objective_of, operations_a_token
from llama.lora import chosen
from llama.parallel import start


def test_it_runs_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_training.main(["--miniature", "--out", str(tmp_path / "gpu.md")]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "a CPU, in miniature" in text and text in capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip() for row in rows] == [task.name for task in LITTLE]
    assert all(row[1].strip() == "240" and float(row[2].replace(",", "")) > 1 for row in rows)


def test_without_a_gpu_it_says_so(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_training.main([]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here; --miniature runs on the CPU\n"


def test_the_formula_by_hand() -> None:
    config = replace(LITTLE[0].config, n_layers=2, dim=8, n_heads=2, n_kv_heads=2, ffn_dim=12)
    config = replace(config, vocab_size=10, tie_embeddings=False)
    block = 4 * 8 * 8 + 3 * 8 * 12 + 2 * 8
    weights = 2 * block + 8 + 10 * 8  # with the last norm, and the table of the logits
    task = Task("x", config, T=100)
    assert operations_a_token(task) == 6 * weights + 12 * 2 * 8 * 100
    assert operations_a_token(replace(task, lora_rank=2)) == 4 * weights + 12 * 2 * 8 * 100
    tied = replace(task, config=replace(config, tie_embeddings=True))
    assert operations_a_token(tied) == operations_a_token(task)  # its one table makes the logits


@pytest.mark.parametrize("task", LITTLE, ids=lambda task: task.name)
def test_each_line_has_as_many_tokens_as_are_counted(task: Task) -> None:
    jobs = objective_of(task).jobs(0, 1)
    assert [len(line) for job in jobs for line in job.lines] == [task.T] * task.lines
    assert all(len(job.lines) <= task.at_once for job in jobs)


def test_adapters_stand_beside_weights_in_the_type_of_the_computation() -> None:
    plain, adapted = (made(task, start(), torch.float32) for task in LITTLE)
    assert chosen(plain) is None and chosen(adapted) == LITTLE[1].settings.lora
    assert all(weight.isfinite().all() for weight in adapted.parameters())


def test_the_plan_says_that_the_tasks_fit_an_h200() -> None:
    has = 150.1  # GB, as the driver says
    needs = {task.name: gpu_training.planned_bytes(task, torch.bfloat16) / 1e9 for task in TASKS}
    assert all(need < 0.95 * has for need in needs.values()), needs
