"""What a model learns to reply beside its pairs, and as rows of tokens. Knows no model and no file.

```
  ift.jsonl    prompt (and system) → response       given: of a place, a file and a line
  eft.jsonl    the judge's prompt  → judgement
  practice, …  the same                             made by the run: of none
```
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dpo import Pair, Row
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


def fitting(examples: Iterable[Example], tokenizer: Tokenizer, longest: int) -> list[Row]:
    """The tokens of each example, and which of them are to be learnt. One of the run's own making
    that has more than `longest` tokens is left out.

    Raises ValueError, naming file and line, for such a one that was given.
    """
    rows = []
    for example in examples:
        ids, is_response = encode_example(tokenizer, *example[:3])
        if len(ids) <= longest:
            rows.append(Row(ids, is_response))
        elif example.place:
            raise ValueError(
                f"{example.place}: the example has {len(ids)} tokens, the model reads at most "
                f"{longest}; shorten or remove the row"
            )
    return rows


def fitting_pairs(
    pairs: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, longest: int
) -> list[Pair]:
    """The tokens of each preference pair. One that has an answer which, with its prompt, has more
    than `longest` tokens is left out: the run made it, from a sample that filled the context.
    """
    made = []
    for pair in pairs:
        answers = (
            encode_example(tokenizer, pair["prompt"], pair[k]) for k in ("chosen", "rejected")
        )
        chosen, rejected = (Row(*answer) for answer in answers)
        if max(len(chosen.ids), len(rejected.ids)) <= longest:
            made.append(Pair(chosen, rejected))
    return made
