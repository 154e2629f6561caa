"""Runs the smallest world in processes of its own, forked from one that has everything loaded, so
that a run costs a second and can be killed in earnest.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from tqdm import tqdm

from faults.shim import Act, watched
from faults.world import flags
from judge import bootstrap
from loop import files
from loop.command import run_command
from seed.start import open_start
from train import SelfRewarding

NO_RESULT = (".lock", "report.html")  # a process number; the report again, seconds and all


def forked(work: Callable[[], int], said: Path | None = None) -> int:
    """Starts `work` in a child process; its pid. What it prints goes to the file `said`."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child uses none
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        torch.set_num_threads(1)
        bootstrap.RESAMPLES = 20  # of 2,000: intervals as good as any, in an eighth less time
        tqdm.set_lock(RLock())  # its usual lock is shared with all forks, and the killed keep it
        out = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # pytest may have put others
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.environ["TQDM_DISABLE"] = "1"
        code = work()
        sys.stdout.flush()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def begin(home: Path, run: Path, *more: str, act: Act | None = None) -> int:
    """Starts, or goes on with, a run of the world `home`; the pid of its process."""

    def work() -> int:
        os.fsync = lambda file: None  # nothing here pulls the plug, so why wait for the disk?
        with watched(run, act) if act else nullcontext():
            return run_command(open_start, SelfRewarding, flags(home, run, *more))

    return forked(work, said=run.with_suffix(".said"))


def end(pid: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_to_end(home: Path, run: Path, *more: str, act: Act | None = None) -> int:
    """`begin` and `end`."""
    return end(begin(home, run, *more, act=act))


def said(run: Path) -> str:
    """What the last process of this run printed."""
    return run.with_suffix(".said").read_text()


def left(run: Path) -> dict[str, str]:
    """The hash of every file that a run left, hidden ones too; seconds and the like left out."""
    return {name: _hash(run / name) for name in files.names_in(run) if name not in NO_RESULT}


def _hash(path: Path) -> str:
    data = path.read_bytes()
    if path.name in ("manifest.json", "report.json"):
        data = files.json_bytes(_timeless(files.read_json(data)))
    return hashlib.sha256(data).hexdigest()


def _timeless(tree: Any) -> Any:
    """Without what differs between two runs of the same thing; a resumed training counts tokens
    from where it went on.
    """
    if not isinstance(tree, dict):
        return tree
    varying = ["seconds", "tokens", "tokens_per_second"] + ["sha256"] * ("stages" in tree)
    return {key: _timeless(value) for key, value in tree.items() if key not in varying}


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The names that differ, or that one of them lacks."""
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
