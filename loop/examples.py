"""What a model learns to reply beside its pairs, and as rows of tokens. Knows no model and no file.

```
  ift.jsonl    prompt (and system) → response       given: of a place, a file and a line
  eft.jsonl    the judge's prompt  → judgement
  practice, …  the same                             made by the run: of none
```
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dpo import Row
from judge import Rubric
from llama import Tokenizer, encode_example


class Example(NamedTuple):
    """A prompt and the response to be learnt."""

    prompt: str
    response: str
    system: str | None = None  # the message in front of the prompt
    place: str | None = None  # where the user gave it


def answered(row: Mapping[str, Any]) -> Example:
    """An instruction, with its system message if it has one, and its good answer."""
    return Example(row["prompt"], row["response"], row.get("system"))


def judged(rubric: Rubric, row: Mapping[str, Any]) -> Example:
    """An answer, as it is shown to the judge, with its judgement."""
    return Example(rubric.render(row["prompt"], row["response"]), row["judgement"])


def placed(file: str, examples: Iterable[Example]) -> list[Example]:
    """The examples of a file of the seed data, one a line."""
    return [
        example._replace(place=f"{file}:{line}") for line, example in enumerate(examples, start=1)
    ]


def encoded(tokenizer: Tokenizer, example: Example) -> Row:
    """The tokens, and which of them are to be learnt."""
    return Row(*encode_example(tokenizer, example.prompt, example.response, example.system))
