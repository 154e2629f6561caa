"""Lets a model answer prompts, n candidates each. Knows no model: it sees a callable."""

from collections.abc import Sequence
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
    def chances(self) -> Sequence[float] | None:
        """How probable each of the `choices` was where the last of them was written; None if none
        was.
        """


class Complete(Protocol):
    """Completes every prompt n times; `Completer` is one, a test's fake another.

    A sample depends on (seed, its prompt's id, its number among the n), on nothing beside it.
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
        description: str,
    ) -> Sequence[Sequence[Written]]: ...


def respond(
    complete: Complete,
    prompts: Sequence[Row],
    *,
    n: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[Row]:
    """Answers each prompt `{id, prompt}` n times, under the chat template.

    Returns response rows `{id, prompt_id, k, text, token_count, finished}`, a prompt's n together.
    """
    answers = complete(
        [prompt["prompt"] for prompt in prompts],
        ids=[prompt["id"] for prompt in prompts],
        n=n,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        description="answering",
    )
    return [
        {
            "id": f"{prompt['id']}.{k}",
            "prompt_id": prompt["id"],
            "k": k,
            "text": answer.text,
            "token_count": len(answer.token_ids),
            "finished": answer.finished,
        }
        for prompt, samples in zip(prompts, answers)
        for k, answer in enumerate(samples)
    ]
