"""One preference pair from its prompt to the judgements that made it, as text. Knows only the files
of a run; what is not there is not shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from judge import mean_score
from loop.rows import Row, Rows
from seed.rows import STRING, Kind, read_rows

T = TypeVar("T")
INDENT = "      "
_TEXTS = Kind(
    "a list of strings",
    lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
)
_FLAG = Kind("true or false", lambda value: type(value) is bool)
_WHOLE = Kind("a whole number", lambda value: type(value) is int)
_SCORE = Kind("a number or null", lambda value: value is None or type(value) in (int, float))
_FIELDS = {  # what is read of each file's rows
    "pairs": dict.fromkeys(("id", "prompt", "chosen_id", "rejected_id"), STRING),
    "responses": {**dict.fromkeys(("id", "prompt_id", "text"), STRING), "finished": _FLAG},
    "prompts": {"id": STRING, "prompt": STRING, "demonstrations": _TEXTS},
    "judgements": {
        **dict.fromkeys(("id", "response_id", "text"), STRING),
        "k": _WHOLE,
        "score": _SCORE,
    },
}


def trace(directory: Path, pair: str) -> str:
    """How the pair of that id in `directory`/pairs.jsonl came about, M_t's directory of a run.

    Raises ValueError if there is no such pair, and for a file that is not there or is damaged.
    """
    pairs, responses, rows, judgements = (_rows(directory, name) for name in _FIELDS)
    found = next((row for row in pairs if row["id"] == pair), None)
    if found is None:
        some = ", ".join(row["id"] for row in pairs[:5])
        raise ValueError(f"{directory / 'pairs.jsonl'}: no pair {pair!r}; it holds {some}, …")
    prompt_of = {row["id"]: row["prompt_id"] for row in responses}
    prompts = {row["id"]: row for row in rows}
    prompt_id = _found(prompt_of, found["chosen_id"], directory / "responses.jsonl")
    demonstrations = _found(prompts, prompt_id, directory / "prompts.jsonl")["demonstrations"]
    lines = [f"prompt {prompt_id}: {found['prompt']}", "  written after the manner of"]
    for name in demonstrations:
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


def _found(by_id: Mapping[str, T], name: str, path: Path) -> T:
    if name not in by_id:
        raise ValueError(
            f"{path}: lacks {name!r}, of which the pair was made; "
            "the run's own command makes what is damaged again"
        )
    return by_id[name]


def _rows(directory: Path, name: str) -> Rows:
    path = directory / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; name a model that made pairs: RUN/M1")
    if not path.stat().st_size:
        return []
    return read_rows(path, _FIELDS[name])
