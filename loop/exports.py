"""Answers in the forms that other evaluations read. Pure functions over rows; knows no model.

| form | file | fields |
|---|---|---|
| alpaca-eval | one JSON list | instruction, output, generator; dataset where it is known |
| mt-bench | JSON Lines | question_id, answer_id, model_id, choices: [{index, turns}], tstamp |
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from loop.files import json_bytes, jsonl_bytes
from loop.rows import Row, Rows
from seed.rows import TEXT, Kind, check, is_string, objects, refuse

ALPACA_EVAL, MT_BENCH = "alpaca-eval", "mt-bench"
FORMS = (ALPACA_EVAL, MT_BENCH)


def alpaca_eval(questions: Sequence[Row], generator: str) -> bytes:
    """AlpacaEval's model_outputs.json of questions `{turns, answers}`, one turn each."""
    rows = []
    for row in questions:
        output = {"instruction": row["turns"][0], "output": row["answers"][0]}
        known = {"dataset": row["dataset"]} if "dataset" in row else {}
        rows.append(output | {"generator": generator} | known)
    return json_bytes(rows)


def mt_bench(questions: Sequence[Row], model_id: str, now: float) -> bytes:
    """FastChat's model_answer/MODEL.jsonl of questions `{id, turns, answers}`.

    now: seconds since 1970. The answer's id follows from model, question and text.
    """
    rows = []
    for row in questions:
        said = repr((model_id, row["id"], row["answers"])).encode()
        rows.append(
            {
                "question_id": row["id"],
                "answer_id": blake2b(said, digest_size=11).hexdigest(),
                "model_id": model_id,
                "choices": [{"index": 0, "turns": list(row["answers"])}],
                "tstamp": now,
            }
        )
    return jsonl_bytes(rows)


def held_out(prompts: Sequence[Row], texts: Mapping[str, str]) -> Rows:
    """The held-out prompts of a run as answered questions; texts: `{prompt id: answer}`."""
    return [
        {"id": row["id"], "turns": [row["prompt"]], "answers": [texts[row["id"]]]}
        for row in prompts
    ]


def read_questions(path: Path) -> Rows:
    """Questions `{id, turns}`, from JSON Lines of ours `{id, prompt}` or MT-Bench's `{question_id,
    turns}`, or from AlpacaEval's list of `{instruction}`; a `dataset` is kept.

    Raises ValueError naming file and line (in a list: the number of the entry).
    """
    questions: Rows = []
    seen: dict[Any, int] = {}
    for line, row in _entries(path):
        field = next((name for name in _FIELDS if name in row), None)
        if field is None:
            wanted = ", ".join(_FIELDS)
            refuse(path, line, f"expected one of the fields {wanted}", "add the question")
        check(path, line, row, {field: _FIELDS[field]}, _BESIDE)
        name = row.get("question_id", row.get("id", f"{len(questions)}"))
        if name in seen:
            refuse(path, line, f"expected an id of its own, found {name!r} as in line {seen[name]}",
                   "give one of the two rows another id")  # fmt: skip
        seen[name] = line
        turns = row["turns"] if field == "turns" else [row[field]]
        kept = {"dataset": row["dataset"]} if "dataset" in row else {}
        questions.append({"id": name, "turns": turns} | kept)
    return questions


def _entries(path: Path) -> Iterable[tuple[int, Row]]:
    """Lines of JSON, or the entries of a JSON list."""
    if not _holds_a_list(path):
        return objects(path)
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON list ({error}); fetch the file again") from None
    if not entries:
        refuse(path, 1, "expected at least one question, found an empty list", "add questions")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            refuse(path, number, "expected a JSON object", "mend the list's entry")
    return enumerate(entries, start=1)


def _holds_a_list(path: Path) -> bool:
    if not path.is_file():
        return False  # `objects` says so
    with open(path, "rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_string, value))


_FIELDS = {
    "prompt": TEXT,
    "instruction": TEXT,
    "turns": Kind("a list of one or more strings", _are_turns),
}
_NAME = Kind("a string or a whole number", lambda value: is_string(value) or type(value) is int)
_BESIDE = {"dataset": TEXT, "question_id": _NAME, "id": _NAME}
