"""The smallest run of `train.py` that has every stage, and some steps of every training."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALLEST = ["--preset", "smoke", "--iterations", "2"]
for assignment in (
    "prompts.count=16", "prompts.round_size=64", "sft.epochs=3", "dpo.epochs=4", "dpo.max_steps=3",
    "dpo.batch_size=8", "evaluation.instructions=6", "evaluation.ranked=3",
):  # fmt: skip
    SMALLEST += ["--set", assignment]


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def train(*flags: object, sizes: Sequence[str] = SMALLEST) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *sizes, *map(str, flags)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, cwd=ROOT, env=ONE_THREAD
    )


def finished_run(place: Path) -> Path:
    """A run that has ended, in `place`: whoever asks first makes it, for all test processes."""
    place.mkdir(exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            done = train("--run", place / "run")
            assert done.returncode == 0, done.stderr[-2000:]
            (place / "done").touch()
    return place / "run"
