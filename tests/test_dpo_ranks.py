"""Training on several ranks equals training on one, however the model is cut across them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dpo_runs import SETTINGS, Killed, kill_before, pairs, records, rows
from ranks import run_ranks
from tiny_llama import tiny_model

from dpo import train_dpo, train_sft
from llama.cut import local_rows
from llama.parallel import Group, Layout, shard, start

LAYOUTS = {
    "whole": Layout(),
    "hybrid": Layout(shard="machine"),
    "offload": Layout(offload=True),
    "both": Layout(shard="machine", offload=True),
}
ALONE = Group(0, 1, torch.device("cpu"), 1.0)


def train_both(root: Path, group: Group) -> None:
    """SFT, then DPO with a batch that leaves one rank without pairs."""
    model = shard(tiny_model(), group)
    rows_here = local_rows(model.layers[0].ffn.w1.weight)
    assert rows_here.stop - rows_here.start == 36 * group.copies // group.world_size
    train_sft(model, rows(24), SETTINGS, seed=0, group=group, directory=root / "sft")
    extra = replace(SETTINGS, nll_weight=0.1, replay_weight=0.2)
    replay = rows(7, seed=9)
    train_dpo(model, pairs(9), extra, seed=0, group=group, directory=root / "dpo", replay=replay)


def on_ranks(root: Path, layouts: list[str]) -> None:
    """Trains under each of the layouts, into the directory of its name."""
    group = start(timeout_s=200)
    for name in layouts:
        train_both(root / name, replace(group, layout=LAYOUTS[name]))
    group.stop()


def trained_until(root: Path, step: int) -> None:
    """Begins, or goes on with, a training that dies before `step`."""
    group = start(timeout_s=200)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_before(patch, step)
        train_both(root, group)
    group.stop()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    root = tmp_path_factory.mktemp("one")
    train_both(root, ALONE)
    return root


def close(ours: Path, theirs: Path) -> None:
    for part in ("sft", "dpo"):
        mine, others = records(ours / part), records(theirs / part)
        assert len(mine) >= 3
        for a, b in zip(mine, others, strict=True):
            assert a.keys() == b.keys() and a["tokens"] == b["tokens"]
            for name, value in a.items():
                nats = 1e-4 if name == "kl" else 1e-5  # what is left of sums of some hundred nats
                assert value == pytest.approx(b[name], abs=nats, rel=2e-5), (part, name)


def test_four_ranks_train_as_one_however_the_model_is_cut(tmp_path: Path, one: Path) -> None:
    """Two machines of two ranks: one copy, a copy a machine, parts that wait in memory, both."""
    layouts = list(LAYOUTS)
    codes = run_ranks(on_ranks, 4, tmp_path, layouts, limit_s=250, machines=2)
    assert codes == [0] * 4
    for name in layouts:
        close(one, tmp_path / name)


def test_two_ranks_train_as_one_and_go_on_where_one_stopped(tmp_path: Path, one: Path) -> None:
    """Two machines of a rank each have a whole copy each; and a training begun on two ranks is
    taken up by one, then by two again."""
    moved = tmp_path / "whole"
    assert run_ranks(trained_until, 2, moved, 2, limit_s=250) == [0, 0]
    trained_until(moved, 4)
    assert len(records(moved / "sft")) == 4
    codes = run_ranks(on_ranks, 2, tmp_path, ["whole", "hybrid"], limit_s=250, machines=2)
    assert codes == [0, 0]
    close(one, moved)
    close(one, tmp_path / "hybrid")


def test_one_rank_whose_weights_wait_trains_the_same(tmp_path: Path, one: Path) -> None:
    waiting = replace(ALONE, layout=LAYOUTS["offload"])
    train_both(tmp_path, waiting)
    waiting.stop()
    close(one, tmp_path)
