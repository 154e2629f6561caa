"""Ranks: the same training however many there are, files from a sharded model, and peers that die
or hang.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from tiny_llama import GROUPED, same_weights, tiny_model, tiny_tokenizer

import llama
from dpo.optimizer import clip_grad_norm
from llama.parallel import (
    Group,
    PeerLost,
    current,
    full_state,
    full_tensor,
    local_rows,
    shard,
    start,
)

ALONE = Group(0, 1, torch.device("cpu"), 1.0)
ODD = replace(GROUPED, vocab_size=401, ffn_dim=37)  # on two ranks, one holds a row more
ROWS = torch.randint(3, 400, (7, 12), generator=torch.Generator().manual_seed(0))


def train(model: torch.nn.Module, group: Group, optimizer: str, max_norm: float) -> list[float]:
    """Three steps on this rank's share of `ROWS`, in two micro-batches each; losses (global), then
    norms.
    """
    step_size = {"SGD": 0.1, "AdamW": 1e-3}[optimizer]
    step = getattr(torch.optim, optimizer)(model.parameters(), lr=step_size)
    count, losses, norms = ROWS[:, 1:].numel(), [], []
    for _ in range(3):
        step.zero_grad()
        total = 0.0
        rows = torch.stack(group.slice(list(ROWS)))
        for part in rows.split(2) if len(rows) > 2 else (rows, rows[:0]):
            logits_BTV = model(part[:, :-1]).float()
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
            (loss / count).backward()
            total += loss.item()
        losses.append(group.sum([total])[0] / count)
        norms.append(clip_grad_norm(model, max_norm, group))
        step.step()
    return losses + norms


def train_on_ranks(directory: str) -> None:
    """Trains, and leaves the numbers and the weights behind."""
    group = start(timeout_s=60)
    assert current() is group
    for optimizer in ("SGD", "AdamW"):
        model = shard(tiny_model(ODD), group)
        numbers = train(model, group, optimizer, max_norm=0.5)
        llama.save(model, tiny_tokenizer(), Path(directory) / optimizer)
        prints = group.gather_rows([llama.fingerprint(model)])
        if group.is_main:
            file = Path(directory) / f"{optimizer}.json"
            file.write_text(json.dumps({"numbers": numbers, "prints": prints}))
    check_group(group)
    check_sharded_files(group, Path(directory) / "SGD")
    group.stop()


def check_group(group: Group) -> None:
    """The laws of a group, on every rank."""
    for size in range(6):
        assert group.gather_rows(group.slice(range(size))) == list(range(size))
    uneven = [(group.rank, k) for k in range(3 * group.rank)]
    merged = group.gather_rows(uneven)
    assert len(merged) == sum(3 * rank for rank in range(group.world_size))
    assert group.broadcast_object({"rank": group.rank}) == {"rank": 0}
    assert group.sum([1.0, float(group.rank), 2.0**53]) == [
        group.world_size, sum(range(group.world_size)), group.world_size * 2.0**53,
    ]  # fmt: skip


def check_sharded_files(group: Group, directory: Path) -> None:
    """Each rank reads its own rows; a forward pass without a backward leaves the weights whole for
    nobody.
    """
    whole, _ = llama.load(directory)
    model, _ = llama.load_sharded(directory, group)
    weight = model.layers[0].ffn.w1.weight
    mine = local_rows(weight)
    assert mine.stop - mine.start < weight.shape[0]
    assert torch.equal(weight.to_local(), whole.layers[0].ffn.w1.weight[mine])
    with torch.no_grad():
        torch.testing.assert_close(model(ROWS), whole(ROWS))
    state = full_state(model)
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.state_dict().items())
    assert llama.fingerprint(model) == llama.fingerprint(whole)


def test_two_ranks_train_as_one_process_does(tmp_path) -> None:
    assert run_ranks(train_on_ranks, 2, str(tmp_path)) == [0, 0]
    for optimizer in ("SGD", "AdamW"):
        alone = tiny_model(ODD)
        numbers = train(alone, ALONE, optimizer, max_norm=0.5)
        found = json.loads((tmp_path / f"{optimizer}.json").read_text())
        assert numbers == pytest.approx(found["numbers"], rel=1e-5)
        assert min(numbers[3:]) > 0.5  # so clipping was at work
        together, _ = llama.load(tmp_path / optimizer)
        for name, tensor in together.state_dict().items():
            torch.testing.assert_close(tensor, alone.state_dict()[name], atol=1e-5, rtol=1e-5)
        assert found["prints"] == [llama.fingerprint(together)] * 2


def test_the_check_above_can_fail() -> None:
    """Gradients averaged over two ranks, not summed, are half as long: the numbers must then be far
    apart.
    """
    numbers = train(tiny_model(), ALONE, "SGD", max_norm=0.5)
    model = tiny_model()
    for weight in model.parameters():
        weight.register_hook(lambda grad: grad / 2)
    assert train(model, ALONE, "SGD", max_norm=0.5) != pytest.approx(numbers, rel=1e-2)


def test_one_rank_keeps_fp32_masters_beside_a_bf16_computation() -> None:
    seen = set()
    model = shard(tiny_model(), ALONE, torch.bfloat16)
    model.layers[1].ffn.register_forward_hook(lambda m, _, out: seen.add(out.dtype))
    numbers = train(model, ALONE, "SGD", max_norm=0.5)
    ALONE.stop()
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in full_state(model).values()} == {torch.float32}
    exact = train(tiny_model(), ALONE, "SGD", max_norm=0.5)
    assert numbers == pytest.approx(exact, rel=0.03)
    assert numbers != exact


def test_one_rank_in_its_own_type_is_left_whole(tmp_path) -> None:
    model = tiny_model()
    llama.save(model, tiny_tokenizer(), tmp_path)
    assert same_weights(llama.load_sharded(tmp_path, ALONE)[0], model)
    assert shard(model, ALONE) is model
    assert type(model) is llama.Llama
    check_group(ALONE)
    ALONE.barrier()
    assert local_rows(model.norm.weight) == slice(0, GROUPED.dim)
    assert full_tensor(model.norm.weight).data_ptr() == model.norm.weight.data_ptr()


def test_clipping_by_hand() -> None:
    model = torch.nn.Linear(2, 1)
    gradients = {"weight": torch.tensor([[3.0, 0.0]]), "bias": torch.tensor([4.0])}

    def clip(max_norm: float, scale: float = 1.0) -> tuple[float, list[float]]:
        for name, weight in model.named_parameters():
            weight.grad = gradients[name] * scale
        norm = clip_grad_norm(model, max_norm, ALONE)
        return norm, [*model.weight.grad.flatten().tolist(), *model.bias.grad.tolist()]

    assert clip(10.0) == (5.0, [3.0, 0.0, 4.0])
    norm, clipped = clip(1.0)
    assert norm == 5.0
    assert clipped == pytest.approx([0.6, 0.0, 0.8])
    norm, clipped = clip(1.0, scale=float("inf"))  # inf · 0 is nan: all is left as it was
    assert norm != norm
    assert clipped[0] == clipped[2] == float("inf")
    assert clip_grad_norm(torch.nn.Linear(2, 1), 1.0, ALONE) == 0.0  # no gradient at all


# Peers that die or hang


def wait_for(file: Path) -> None:
    """Half a minute at most."""
    end = time.monotonic() + 30
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)


def arrive(directory: Path) -> None:
    """Lets two ranks go on together, so that a busy machine's slow imports are no lost peer."""
    rank = int(os.environ["RANK"])
    (directory / f"arrived.{rank}").touch()
    wait_for(directory / f"arrived.{1 - rank}")


def lose_rank_1(directory: str, how: str, where: str) -> None:
    """Rank 1 dies or hangs; rank 0 writes down what it is told."""
    import torch.distributed.fsdp  # noqa: F401 (slow: before the ranks must be in step)

    arrive(Path(directory))
    group = start(timeout_s=3)
    model = shard(tiny_model(), group)
    group.barrier()
    if group.rank == 1:
        if how == "hangs":
            wait_for(Path(directory) / "report.json")
        os._exit(9)
    begun = time.monotonic()
    try:
        with group.phase("M2, step 17"):
            if where == "step":
                model(ROWS).sum().backward()
            else:
                group.gather_rows(["x"])
    except PeerLost as lost:
        report = {"text": str(lost), "seconds": time.monotonic() - begun}
        (Path(directory) / "report.json").write_text(json.dumps(report))
        os._exit(3)


@pytest.mark.parametrize(("how", "where"), [("dies", "step"), ("hangs", "gathering")])
def test_a_lost_peer_is_reported_with_rank_and_phase(tmp_path, how: str, where: str) -> None:
    codes = run_ranks(lose_rank_1, 2, str(tmp_path), how, where)
    report = json.loads((tmp_path / "report.json").read_text())
    assert codes[0] == 3
    assert "M2, step 17" in report["text"]
    assert "rank 0 of 2" in report["text"]
    assert report["seconds"] < 10
    if where == "gathering":
        assert "Ranks 1 failed" in report["text"]


def test_an_error_of_this_rank_is_no_lost_peer() -> None:
    two = Group(1, 2, torch.device("cpu"), 1.0)
    for error in (RuntimeError("shape mismatch"), ValueError("Connection refused by the user")):
        with pytest.raises(type(error), match=str(error)), two.phase("step"):
            raise error
