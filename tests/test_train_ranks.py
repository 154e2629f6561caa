"""The whole loop under torchrun: what several ranks, and several machines, make of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import run_ranks
from smallest_run import ONE_THREAD, ROOT, SMALLEST

from llama.parallel import start
from loop.command import check_shared


def begin(*launcher: str, run: Path, how: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, "train.py", *SMALLEST, "--run-dir", str(run), *how]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=pipe, stderr=pipe, text=True)


def end(*processes: subprocess.Popen) -> str:
    """All that they printed. What fails or hangs takes the others with it."""
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), said
    return "".join(out for out, _ in said)


def losses(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name / "train.jsonl").read_text().splitlines()]


def same_training(ours: Path, theirs: Path, name: str) -> None:
    mine, others = losses(ours, name), losses(theirs, name)
    assert len(mine) >= 3
    for a, b in zip(mine, others, strict=True):
        assert a["tokens"] == b["tokens"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


@pytest.mark.parametrize("team", [1, 2])
def test_two_ranks_sample_the_same_rows_and_train_the_same(finished, tmp_path, team: int):
    """From M1 as one process made it: its rows, to the byte, here in several units; then M2's
    training. Each rank with a replica, or both with one.
    """
    run = tmp_path / "two"
    shutil.copytree(finished, run)
    rows = sorted(path.relative_to(run) for path in run.glob("M1/*.json*"))
    sampled = ("eval_answers", "eval_judgements", "prompts", "responses", "judgements", "practice")
    rows = [path for path in rows if path.stem in sampled and path.suffix == ".jsonl"]
    assert len(rows) == len(sampled) and len(losses(finished, "M1")) > 0
    for path in rows:
        (run / path).unlink()
    shutil.rmtree(run / "M2")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    how = ("--set", f"machine.sample_tp={team}", "--set", "machine.unit=8")
    said = end(begin(*torchrun, run=run, how=how))
    assert "2 ranks (cpu), cut across 2 ranks" in said
    assert ("in teams of 2 ranks" in said) == (team == 2)
    for path in rows:
        assert (run / path).read_bytes() == (finished / path).read_bytes(), path
        assert said.count(f"({path})") == 1 and f"done before ({path})" not in said
    assert (run / "M1/pairs.jsonl").read_bytes() == (finished / "M1/pairs.jsonl").read_bytes()
    same_training(run, finished, "M2")


def test_two_machines_run_the_loop_to_its_end(finished, tmp_path):
    """Two agents of torchrun that meet over the network; here both are on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "loop"]
    torchrun += ["--local-addr", "127.0.0.1"]
    said = end(*(begin(*torchrun, run=tmp_path / "run") for _ in range(2)))
    assert "2 ranks on 2 machines (cpu), cut across 2 ranks" in said
    assert said.count("complete: ") == 1
    assert (tmp_path / "run/M2/model.safetensors").is_file()
    same_training(tmp_path / "run", finished, "M1")


def see(directory: str) -> None:
    """Rank 1 works in another directory, as on a machine that shares no disk."""
    os.chdir(Path(directory) / os.environ["RANK"])
    group = start(timeout_s=60)
    with pytest.raises(ValueError, match=r"ranks 1 see no config.json there; several machines"):
        check_shared(Path("run"), group)
    group.stop()


def test_a_machine_that_does_not_see_the_run_is_told(tmp_path):
    for rank in "01":
        (tmp_path / rank / "run").mkdir(parents=True)
    (tmp_path / "0/run/config.json").touch()
    assert run_ranks(see, 2, str(tmp_path), machines=2) == [0, 0]
    check_shared(tmp_path / "0/run", start())
    with pytest.raises(ValueError, match="ranks 0 see no config.json"):
        check_shared(tmp_path / "1/run", start())
