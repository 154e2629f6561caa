"""What rows are, and how a run's tables are joined. Knows no file."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]  # one line of a JSONL file
Rows = list[Row]


def as_items(prompts: Sequence[Row], responses: Sequence[Row]) -> Rows:
    """Responses beside the prompts that they answer, as a judge sees them: `{id, prompt,
    response}`.
    """
    text_of = {row["id"]: row["prompt"] for row in prompts}
    return [
        {"id": row["id"], "prompt": text_of[row["prompt_id"]], "response": row["text"]}
        for row in responses
    ]
