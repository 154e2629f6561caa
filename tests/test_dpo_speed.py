"""MFU: the operations of a step by hand, and the cards whose peak is known."""

import re
from dataclasses import replace

import pytest
import torch
from dpo_runs import SETTINGS, dpo, records, sft
from tiny_llama import GROUPED, tiny_model

from dpo import descent, speed
from dpo.speed import PEAKS, operations, peak
from llama import LlamaConfig

SMALL = LlamaConfig(vocab_size=10, dim=8, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=12)
CARD = torch.device("cuda:0")


def test_the_operations_of_lines_by_hand():
    block = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 12 + 2 * 8  # queries, output; keys, values; FFN; gains
    weights = 2 * block + 8 + 10 * 8  # the last gain, the logits; not the embeddings
    attention = 12 * 2 * 8
    by_hand = 7 * (6 * weights + attention * 7) + 3 * (6 * weights + attention * 3)
    assert operations(SMALL, [7, 3]) == by_hand
    assert operations(SMALL, [7, 3], frozen=True) == by_hand - 10 * 2 * weights
    assert operations(replace(SMALL, tie_embeddings=True), [7, 3]) == by_hand
    assert operations(SMALL, []) == 0


def test_7b_takes_six_operations_a_weight_and_a_little_for_attention():
    each = operations(LlamaConfig(), [4096]) / 4096
    assert each == pytest.approx(6 * 6.607e9 + 12 * 32 * 4096 * 4096, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-SXM4-40GB", 312),  # as older drivers say it
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H200 NVL", None),
        ("A made-up card", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(name, teraflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak(CARD) == (None if teraflops is None else teraflops * 1e12)
    assert sum(bool(re.fullmatch(card, name.removeprefix("NVIDIA "))) for card in PEAKS) <= 1


def test_a_processor_has_no_peak():
    assert peak(torch.device("cpu")) is None


def test_the_share_is_told_where_the_peak_is_known(monkeypatch):
    """A made-up card that does a billion operations a second."""
    assert "mfu" not in sft(tiny_model(), max_steps=3)
    monkeypatch.setattr(descent, "peak", lambda device: 1e9)
    shown = []
    monkeypatch.setattr(descent, "_shown", lambda record, fast: shown.append(fast) or {})
    metrics = sft(tiny_model(), max_steps=3)
    rows = [len(line) for line in lines_of(3)]
    took = operations(GROUPED, rows)
    assert metrics["tokens"] == sum(rows)
    assert metrics["mfu"] == pytest.approx(took / (metrics["seconds"] * 1e9), rel=1e-9)
    assert len(shown) == 3 and shown[-1].keys() == {"tokens_per_second", "mfu"}


def lines_of(steps):
    """The lines that `sft` reads in its first steps."""
    from dpo_runs import rows

    from dpo.batches import Dealer
    from dpo.lines import row_line

    dealer = Dealer(rows(24), lambda row, i: row_line(row, i, 10**6), SETTINGS.batch_size, 0)
    return [line for step in range(steps) for line in dealer.step(step)]


def test_processes_count_all_their_parts(monkeypatch):
    monkeypatch.setattr(descent, "peak", lambda device: 1e9)
    one, two = (sft(tiny_model(), max_steps=3, processes=n) for n in (1, 2))
    assert one["mfu"] * one["seconds"] == pytest.approx(two["mfu"] * two["seconds"], rel=1e-9)


def test_what_is_counted_stands_in_no_record(tmp_path):
    dpo(tiny_model(), tmp_path, max_steps=1)
    assert not {"operations", "mfu"} & records(tmp_path)[0].keys()


def test_the_bar_shows_it():
    shown = descent._shown({"loss": 0.5}, {"tokens_per_second": 1234.0, "mfu": 0.412})
    assert shown == {"loss": "0.5", "tokens/s": "1,234", "MFU": "41.2%"}
    assert "MFU" not in descent._shown({"loss": 0.5}, {"tokens_per_second": 1234.0})
    assert speed.PEAKS["H200"] == 989
