"""Lets a model answer prompts, n candidates each. Knows no model: it sees a callable."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

Row = dict[str, Any]  # one line of a JSONL file


class Written(Protocol):
    """What came back for one sample."""

    @property
    def text(self) -> str: ...

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def finished(self) -> bool:
        """False where the token budget ended the text, not its writer."""

    @property
    def places(self) -> Sequence[tuple[int, int, Sequence[float]]]:
        """Where the last token of one of the `choices` stands: its number among them, the length of
        the text up to and with it, and how probable each of them was there.
        """


class Complete(Protocol):
    """Completes every prompt n times; `Completer` is one, a test's fake another.

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
    ) -> Iterable[Sequence[Written]]: ...


def respond(complete: Complete, prompts: Sequence[Row], **how: Any) -> list[Row]:
    """`respond_in_parts` with one part."""
    [rows] = respond_in_parts(complete, [prompts], **how)
    return rows


def respond_in_parts(
    complete: Complete,
    parts: Sequence[Sequence[Row]],
    *,
    n: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> Iterator[list[Row]]:
    """Answers each prompt `{id, prompt}` n times, under the chat template.

    Yields each part's response rows `{id, prompt_id, k, text, token_count, finished}`, a prompt's n
    together.
    """
    prompts = list(chain.from_iterable(parts))
    more: dict[str, Any] = {"parts": [len(part) for part in parts]} if len(parts) > 1 else {}
    answers = complete(
        [prompt["prompt"] for prompt in prompts],
        ids=[prompt["id"] for prompt in prompts],
        n=n,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        description="answering",
        **more,
    )
    rest = iter(answers)
    for part in parts:
        yield [
            {
                "id": f"{prompt['id']}.{k}",
                "prompt_id": prompt["id"],
                "k": k,
                "text": answer.text,
                "token_count": len(answer.token_ids),
                "finished": answer.finished,
            }
            for prompt, samples in zip(part, rest)
            for k, answer in enumerate(samples)
        ]
