"""What a container allows is found in either version of control groups, whoever set the limit."""

import sys

import pytest
import torch

from llama import parallel
from llama.container import fit_threads, free_memory, processors
from loop import memory

GIB = 2**30
NO_LIMIT = "9223372036854771712\n"  # as version 1 writes it


def machine(root, groups, files):
    """A root directory with these files of control groups."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert processors(tmp_path) is None and free_memory(tmp_path) is None


def test_docker_of_today(tmp_path):
    """--cpus 2.5 --memory 4g: the container's group is the top that it sees."""
    files = {
        "sys/fs/cgroup/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB // 2}\nslab 7\n",
    }
    root = machine(tmp_path, "0::/\n", files)
    assert processors(root) == 2.5
    assert free_memory(root) == GIB + GIB // 2


def test_docker_of_version_1(tmp_path):
    """The path is the one outside, where the container cannot look; its own group is the top."""
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB + 4096}\n",
    }
    lines = "5:memory:/docker/c0ffee\n4:cpuacct,cpu:/docker/c0ffee\n1:name=systemd:/docker/c0ffee\n"
    root = machine(tmp_path, lines, files)
    assert processors(root) == 3
    assert free_memory(root) == 0


def test_the_strictest_limit_of_all_groups_around_counts(tmp_path):
    """A machine of one's own, where systemd limits the user; what another user has is not ours."""
    files = {
        "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user.slice/one.slice/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/user.slice/one.slice/app/cpu.max": "800000 100000\n",
        "sys/fs/cgroup/user.slice/two.slice/cpu.max": "100000 100000\n",
    }
    root = machine(tmp_path, "0::/user.slice/one.slice/app\n", files)
    assert processors(root) == 4


def test_no_limit_is_none(tmp_path):
    files = {
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/memory.current": "5\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
    }
    for lines in ("0::/\n", "4:cpu:/\n"):
        assert processors(machine(tmp_path, lines, files)) is None
    assert free_memory(machine(tmp_path, "0::/\n", files)) is None
    assert free_memory(machine(tmp_path, "4:memory:/\n", files)) > 2**62  # more than anybody has


@pytest.mark.parametrize(
    ("quota", "seen", "threads"),
    [("250000", 64, 2), ("50000", 64, 1), ("max", 64, 64), ("800000", 4, 4)],
)
def test_threads_are_no_more_than_may_run_at_once(quota, seen, threads, tmp_path, monkeypatch):
    """Rounded down: one thread more than there is time for, and all of them wait."""
    root = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    now = [seen]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    fit_threads(root)
    assert now == [seen]  # who says a number means it
    monkeypatch.delenv("OMP_NUM_THREADS")
    fit_threads(root)
    assert now[-1] == threads


def test_whoever_starts_fits_its_threads(monkeypatch):
    """As every command does at first."""
    fitted = []
    monkeypatch.setattr(parallel, "fit_threads", lambda: fitted.append(True))
    parallel.start()
    assert fitted


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_plans_with_its_part_of_what_the_container_may_take(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    free = memory.memory_of_a_rank(parallel.start())
    monkeypatch.setattr(memory, "free_memory", lambda: 2**21)
    assert memory.memory_of_a_rank(parallel.start()) == 2**20 < free
    monkeypatch.setattr(memory, "free_memory", lambda: 2**60)  # more than there is
    assert memory.memory_of_a_rank(parallel.start()) < 2**59
