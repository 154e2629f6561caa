"""Whether an error says that memory ran out, a card's or the machine's; and saying so in words."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def out_of_memory(error: BaseException) -> bool:
    """The allocator of ordinary memory has no class of its own: its words are all there is."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def naming_shortage(complaint: str) -> Iterator[None]:
    """Raises ValueError with this complaint where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(complaint) from error
