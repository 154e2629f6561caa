"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Derandomized: a test that fails once fails always. No deadline: the machine may be busy.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")


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
    from smallest_run import finished_run

    place = tmp_path_factory.getbasetemp()
    return finished_run((place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "run")


def pytest_configure(config: pytest.Config) -> None:
    """Tests see no GPU, so that they do the same on every machine, unless it is asked for those
    that want one: `pytest -m gpu`."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch  # only now: most tests know no torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))
