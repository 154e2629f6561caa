"""Turns SIGTERM and Ctrl-C into a clean end. Knows nothing of what is being stopped."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable(say: Callable[[str], None], how_to_go_on: str) -> Iterator[None]:
    """Inside, SIGTERM ends the process with exit code 143 and Ctrl-C with 130, after `how_to_go_on`
    was said. There is nothing to save: what is finished is on the disk already.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as end:
        if end.code in {128 + number for number in before}:
            say(how_to_go_on)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
