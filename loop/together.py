"""What one rank decides and all ranks do. Knows no files and no tensors."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")


class Group(Protocol):
    """The ranks of this run (`llama.parallel.Group`)."""

    @property
    def is_main(self) -> bool: ...
    def barrier(self) -> None: ...
    def broadcast_object(self, value: Any) -> Any: ...


def main_says(group: Group, work: Callable[[], T]) -> T:
    """Does `work` on the main rank; its result, or its failure, is every rank's."""
    result, failure, error = None, None, None
    if group.is_main:
        try:
            result = work()
        except Exception as problem:
            error = problem
            failure = (isinstance(problem, ValueError), f"main rank: {problem}")
    result, failure = group.broadcast_object((result, failure))
    if error is not None:
        raise error
    if failure is not None:
        is_for_user, message = failure
        raise ValueError(message) if is_for_user else RuntimeError(message)
    return cast(T, result)
