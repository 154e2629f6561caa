"""Joining the ranks, and saying how a model will lie on them."""

import pytest
import torch

from llama.layout import describe
from llama.parallel import Group, Layout, start


def test_without_torchrun_there_is_one_rank(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    group = start()
    assert (group.rank, group.world_size, group.is_main) == (0, 1, True)
    assert not torch.distributed.is_initialized()
    group.stop()


def test_a_launch_that_cannot_work_says_so(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        start()
    for name, value, least in (
        ("WORLD_SIZE", "two", 1),
        ("WORLD_SIZE", "0", 1),
        ("LOCAL_WORLD_SIZE", "0", 1),
        ("LOCAL_RANK", "-1", 0),
    ):
        with monkeypatch.context() as only:
            only.setenv(name, value)
            with pytest.raises(
                ValueError,
                match=f" {name} must be a whole number from {least} on, found '{value}'",
            ):
                start()


def test_machines_with_unequal_ranks_are_refused(monkeypatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="3 ranks, 2 of them on this machine: start equally many"):
        start()


def test_the_layout_is_told_in_words() -> None:
    def told(ranks: int, here: int, layout: Layout) -> str:
        group = Group(0, ranks, torch.device("cpu"), 1.0, machine_ranks=here, layout=layout)
        return describe(group, 1234567, torch.bfloat16)

    begin, end = "1,234,567 parameters on ", "; computed in bfloat16"
    hybrid, waiting = Layout("machine"), Layout(offload=True)
    for ranks, here, layout, words in (
        (1, 1, Layout(), "1 rank (cpu), whole"),
        (8, 8, Layout(), "8 ranks (cpu), cut across 8 ranks"),
        (8, 8, hybrid, "8 ranks (cpu), cut across 8 ranks"),
        (8, 8, waiting, "8 ranks (cpu), cut across 8 ranks, waiting in the machine's memory"),
        (32, 8, Layout(), "32 ranks on 4 machines (cpu), cut across 32 ranks"),
        (32, 8, hybrid, "32 ranks on 4 machines (cpu), 4 copies, each cut across 8 ranks"),
        (2, 1, hybrid, "2 ranks on 2 machines (cpu), 2 copies, each whole"),
    ):
        assert told(ranks, here, layout) == begin + words + end
    with pytest.raises(ValueError, match="shard must be all or machine, found 'card'"):
        Layout("card")


def test_each_machine_has_one_rank_that_speaks() -> None:
    groups = [Group(rank, 6, torch.device("cpu"), 1.0, machine_ranks=3) for rank in range(6)]
    assert [group.rank for group in groups if group.speaks] == [0, 3]
    assert start().speaks and start().copies == 1


def test_ranks_that_never_meet_say_so(monkeypatch) -> None:
    # torch names a process's groups by counting them, and counts this one: put back afterwards, or
    # the next one is named otherwise than those of the meshes that it has in its caches
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_group_count", 0)
    for name, value in (
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "9"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        RuntimeError, match=r"rank 1 of 2 could not meet the others at 127\.0\.0\.1:9"
    ):
        start(timeout_s=1)
