"""What two ranks make of a number that is none on one of them, and of a rank that stands still."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_runs import SETTINGS, records, rows
from ranks import run_ranks
from tiny_llama import tiny_model

from dpo import train_sft
from dpo.objectives import SFT
from llama.parallel import PeerLost, shard, start

BAD_STEP, STEPS = 2, 4


def meet_faults(directory: str) -> None:
    """Trains with a NaN on rank 1 alone, then rank 1 is stopped in its next training."""
    import torch.distributed.fsdp  # noqa: F401 (slow: before the ranks must be in step)

    group, root = start(timeout_s=8), Path(directory)
    processes = group.gather_rows([os.getpid()])
    usual = SFT.jobs

    def poisoned(self: SFT, step: int, parts: int) -> Any:
        jobs = usual(self, step, parts)
        if step == BAD_STEP and group.rank == 1:
            measure = jobs[1].measure
            bad = lambda logp_S: {"loss": measure(logp_S)["loss"] * math.nan}  # noqa: E731
            jobs[1] = replace(jobs[1], measure=bad)
        if step == STEPS - 1 and root.name == "stopped" and group.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return jobs

    SFT.jobs = poisoned
    settings = replace(SETTINGS, max_steps=STEPS, save_every=1)
    model = shard(tiny_model(), group)
    metrics = train_sft(model, rows(24), settings, seed=0, group=group, directory=root / "nan")
    told = group.gather_rows([(metrics["skipped"], metrics["loss"])])
    if group.is_main:
        (root / "told.json").write_text(json.dumps(told))
    root = root / "stopped"
    begun = time.monotonic()
    try:
        train_sft(model, rows(24), settings, seed=0, group=group, directory=root)
    except PeerLost as lost:
        report = {"text": str(lost), "seconds": time.monotonic() - begun}
        (root / "lost.json").write_text(json.dumps(report))
        os.kill(processes[1], signal.SIGKILL)  # if it is there: it may have gone on, and ended
        os._exit(3)


def test_all_ranks_skip_what_is_bad_on_one_and_a_stopped_one_is_named(tmp_path: Path) -> None:
    codes = run_ranks(meet_faults, 2, str(tmp_path))
    assert codes == [3, -9]  # rank 1 never went on
    first, second = json.loads((tmp_path / "told.json").read_text())
    assert first == second and first[0] == 1
    losses = [record["loss"] for record in records(tmp_path / "nan")]
    assert [loss is None for loss in losses] == [step == BAD_STEP for step in range(STEPS)]
    lost = json.loads((tmp_path / "stopped/lost.json").read_text())
    assert f"training step {STEPS - 1}: " in lost["text"] and "rank 0 of 2" in lost["text"]
    assert "the same command resumes" in lost["text"] and lost["seconds"] < 30
