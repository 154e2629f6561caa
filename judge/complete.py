"""What judging asks of the world: something that completes prompts. Knows no model."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

Row = dict[str, Any]  # one line of a JSONL file


class Completion(Protocol):
    """What came back for one sample."""

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool:
        """False where the token budget ended the text, not its writer."""

    @property
    def places(self) -> Sequence[tuple[int, int, Sequence[float]]]:
        """Where the last token of one of the `choices` stands: its number among them, the length of
        the text up to and with it, and how probable each of them was there.
        """


class Complete(Protocol):
    """Completes every prompt n times; `sampling.Completer` is one, a test's fake another.

    A sample depends on (seed, its prompt's id, its number among the n), on nothing beside it.
    parts: how many prompts each has; a part's samples come as soon as they are there.
    """

    def __call__(
        self,
        prompts: list[str],
        *,
        ids: list[str],
        n: int,
        seed: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        raw: bool = False,
        stop_at_newline: bool = False,
        choices: Sequence[str] = (),
        parts: Sequence[int] = (),
        description: str,
    ) -> Iterable[Sequence[Completion]]: ...
