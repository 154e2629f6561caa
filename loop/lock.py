"""Lets one process own a directory. Knows nothing of what is in it."""

import fcntl
import os
from pathlib import Path

NAME = ".lock"


def take(directory: Path, flag: str = "--run") -> int:
    """Locks `directory` and returns the descriptor that holds the lock, for `release`.

    flag: names the directory on the command line. The system lets go too when the owner dies,
    however it dies. Raises ValueError at once if another process holds the lock.
    """
    descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ValueError(
            f"{directory}: another run (process {owner}) is working in this directory; "
            f"wait for it, or take another directory: {flag} NEW"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def owner(directory: Path) -> int | None:
    """The process on this machine that has locked `directory`, if any. Takes no lock itself: a run
    that starts meanwhile must not find it taken.
    """
    try:
        text, inode = (directory / NAME).read_text(), (directory / NAME).stat().st_ino
        process = int(text)
        os.kill(process, 0)
    except PermissionError:
        return process  # it lives, and is another user's
    except (OSError, ValueError):
        return None
    table = Path("/proc/locks")
    if not table.exists():
        return process
    held = f":{inode} "  # 1: FLOCK ADVISORY WRITE process major:minor:inode 0 EOF
    return process if any("FLOCK" in line and held in line for line in _lines(table)) else None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def release(descriptor: int) -> None:
    """Lets another process have the directory."""
    os.close(descriptor)
