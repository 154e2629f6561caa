"""One preference pair from its prompt to the judgements that made it, as text. Knows only the files
of a run; what is not there is not shown.
"""

from collections.abc import Sequence
from pathlib import Path

from judge import mean_score
from loop.files import read_jsonl
from loop.rows import Row, Rows

INDENT = "      "


def trace(directory: Path, pair: str) -> str:
    """How the pair of that id in `directory`/pairs.jsonl came about, M_t's directory of a run.

    Raises ValueError if there is no such file or no such pair.
    """
    pairs = _rows(directory / "pairs.jsonl")
    found = next((row for row in pairs if row["id"] == pair), None)
    if found is None:
        some = ", ".join(row["id"] for row in pairs[:5])
        raise ValueError(f"{directory / 'pairs.jsonl'}: no pair {pair!r}; it holds {some}, …")
    responses = _rows(directory / "responses.jsonl")
    prompt_id = next(row["prompt_id"] for row in responses if row["id"] == found["chosen_id"])
    prompts = {row["id"]: row for row in _rows(directory / "prompts.jsonl")}
    judgements = _rows(directory / "judgements.jsonl")
    lines = [f"prompt {prompt_id}: {found['prompt']}", "  written after the manner of"]
    for name in prompts[prompt_id]["demonstrations"]:
        lines.append(f"    {name}: {prompts[name]['prompt'] if name in prompts else '(seed)'}")
    for row in responses:
        if row["prompt_id"] == prompt_id:
            lines += _answer(row, found, judgements)
    return "\n".join(lines)


def _answer(row: Row, pair: Row, judgements: Sequence[Row]) -> list[str]:
    """An answer, what became of it, and each of its judgements."""
    mine = [each for each in judgements if each["response_id"] == row["id"]]
    mean = mean_score(each["score"] for each in mine)
    fate = {pair["chosen_id"]: "CHOSEN", pair["rejected_id"]: "REJECTED"}.get(row["id"], "")
    cut = "" if row["finished"] else ", cut off"
    said = "no score" if mean is None else f"{mean:.2f}"
    lines = [f"  answer {row['id']}: {said}{cut} {fate}".rstrip(), *_text(row["text"])]
    for each in mine:
        score = "no score" if each["score"] is None else f"{each['score']:g}"
        lines += [f"    judgement {each['k']}: {score}", *_text(each["text"])]
    return lines


def _text(text: str) -> list[str]:
    return [f"{INDENT}{line}" for line in text.splitlines()]


def _rows(path: Path) -> Rows:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; name a model that made pairs: RUN/M1")
    return read_jsonl(path.read_bytes())
