"""The GPU's bench in miniature, on the CPU; and its roofline against one by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.shapes import TINY, Workload, requests
from llama.config import LlamaConfig
from sampling import engine

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs warn of much


def test_it_runs_in_miniature_in_lanes_too(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(engine, "_in_lanes", lambda *_: True)
    assert gpu.main(["--miniature", "--out", str(tmp_path / "gpu.md")]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "a CPU, in miniature" in text and text in capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip() for row in rows] == ["judge rows", "candidates"]
    assert all(int(row[1]) > 50 and "installed" not in row[4] for row in rows)


def test_without_a_gpu_it_says_so(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here; --miniature runs on the CPU\n"


def test_the_roofline_by_hand() -> None:
    """Two prompts of 5 tokens, 2 of them shared, two samples of 3 tokens each: four lanes."""
    config = LlamaConfig(
        vocab_size=10, dim=4, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=6, max_seq_len=64
    )
    workload = replace(Workload("x", 2, 2, 2, 5, 5, 9), config=config)
    asked = requests(workload, 0)
    assert {len(one.token_ids) for one in asked} == {5}
    bf16 = torch.bfloat16
    matrices = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6  # q, k and v, o, gate up down
    # Of the last block, here the only one, a prompt needs keys and values of its own three tokens,
    # and all else of the last. A query and a key: 2 operations a dimension, as many for the value.
    key_value = 2 * 4 * 2
    reading = 2 * (2 * (key_value * 3 + matrices - key_value) + 4 * 4 * 5 + 2 * 4 * 10)
    a_step = 4 * (2 * matrices + 2 * 4 * 10)  # multiplications by all weights for four lanes
    a_token = 2 * 2 * 2  # bytes: key and value of one head of two dimensions
    held = 2 * (3 * 3 + 2 * (1 + 2 + 3))  # prompts once for both samples at each of three steps
    shared = 3 * 2  # once for all, at each step
    card = gpu.Card("x", bandwidth=1e30, rate=1.0)
    found = gpu.roofline(workload, asked, [[3, 3], [3, 3]], card, bf16)
    assert found == pytest.approx(reading + 3 * a_step)
    card = gpu.Card("x", bandwidth=1.0, rate=1e30)
    found = gpu.roofline(workload, asked, [[3, 3], [3, 3]], card, bf16)
    weights = 2 * config.parameter_count
    assert found == pytest.approx(3 * weights + (held + shared) * a_token)


def test_the_twin_has_the_models_own_weights() -> None:
    model = gpu.random_model(
        Workload("x", 2, 2, 2, 5, 5, 9, config=TINY), torch.device("cpu"), torch.float32
    )
    tokens_BT = torch.arange(20).view(2, 10) + 3
    with torch.no_grad():
        ours, theirs = model(tokens_BT), gpu.twin(model)(tokens_BT).logits
    assert (ours - theirs).abs().max() < 1e-4
