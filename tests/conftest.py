"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Derandomized: a test that fails once fails always. No deadline: the machine may be busy.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")

LONG = ("test_train.py", "test_train_ranks.py", "test_paper.py")  # whole runs


class Alone:
    """The group of a run that has one rank, without torch."""

    is_main = True
    machine_ranks = 1

    def barrier(self) -> None:
        pass

    def broadcast_object(self, value: Any) -> Any:
        return value


@pytest.fixture
def alone() -> Alone:
    return Alone()


@pytest.fixture
def hook() -> Iterator[Any]:
    """Puts a function before every file operation of a run: `hook(function)`."""
    from loop import files

    usual = files.before

    def put(function: Any) -> None:
        files.before = function

    yield put
    files.before = usual


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest run of train.py, ended: to be looked at, or copied."""
    from smallest_run import finished_run  # only now: it keeps the environment, without GPUs

    place = tmp_path_factory.getbasetemp()
    return finished_run((place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "run")


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no GPU, so that they do the same on every machine, unless it is asked for those
    that want one: `pytest -m gpu`."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # the longest first: what is left for the end, when one process may wait for another, is short
    items.sort(key=lambda item: item.path.name not in LONG)
    if "torch" not in sys.modules:
        return  # most tests know no torch
    import torch

    # At the first backward pass autograd looks for GPUs, and where it finds one computes nothing in
    # forks from then on. torch's compiler, if built with CUDA, pretends that there is one.
    torch.ones((), requires_grad=True).backward()
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))
