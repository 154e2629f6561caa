"""Training on several ranks equals training on one."""

from dataclasses import replace
from pathlib import Path

import pytest
from dpo_runs import SETTINGS, Killed, kill_before, pairs, records, rows
from ranks import run_ranks
from tiny_llama import tiny_model

from dpo import train_dpo, train_sft
from llama.parallel import shard, start


def _on_ranks(root: Path) -> None:
    group = start(timeout_s=200)
    model = shard(tiny_model(), group)
    train_sft(model, rows(24), SETTINGS, seed=0, group=group, directory=root / "sft")
    extra = replace(SETTINGS, nll_weight=0.1, replay_weight=0.2)
    replay = rows(7, seed=9)
    train_dpo(model, pairs(9), extra, seed=0, group=group, directory=root / "dpo", replay=replay)
    group.stop()


def close(ours: Path, theirs: Path) -> None:
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert mine.keys() == other.keys() and mine["tokens"] == other["tokens"]
        for name, value in mine.items():
            nats = 1e-4 if name == "kl" else 1e-5  # what is left of sums of some hundred nats
            assert value == pytest.approx(other[name], abs=nats, rel=2e-5), name


def test_two_ranks_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT, then DPO with a batch that leaves one rank without pairs; and two ranks take up what one
    has begun."""
    _on_ranks(tmp_path / "one")
    assert run_ranks(_on_ranks, 2, tmp_path / "two", limit_s=250) == [0, 0]
    with monkeypatch.context() as patch:
        kill_before(patch, 3)
        with pytest.raises(Killed):
            _on_ranks(tmp_path / "moved")
    assert run_ranks(_on_ranks, 2, tmp_path / "moved", limit_s=250) == [0, 0]
    for part in ("sft", "dpo"):
        assert len(records(tmp_path / "one" / part)) >= 3
        close(tmp_path / "one" / part, tmp_path / "two" / part)
        close(tmp_path / "one" / part, tmp_path / "moved" / part)
