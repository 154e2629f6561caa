"""Whether an error says that memory ran out: a card's, or the machine's."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """The allocator of ordinary memory has no class of its own: its words are all there is."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
