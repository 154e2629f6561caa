"""Tells what was read, kept, left out and why, and what became of it. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence

from seed.items import Item
from seed.rows import Row
from seed.sources import Source

KEPT = "kept"
LOST = "its prompt was left out"


def build_report(
    sources: Sequence[Source], items: Sequence[Item], files: Mapping[str, Sequence[Row]]
) -> Row:
    """report.json, but for the settings.

    `prompts` and `answers`: how many were `read`, and of them, under `fates`, how many were kept
    or left out for each reason; these add up. `kept`: how many of the kept prompts can serve what.
    `files`: what was written; `unused`: kept prompts that are in no file.
    """
    good = [item for item in items if item.flaw is None]
    prompts = Counter(item.flaw or KEPT for item in items)
    answers = Counter(
        LOST if item.flaw else answer.flaw or KEPT for item in items for answer in item.answers
    )
    return {
        "sources": [
            {"file": s.file, "kind": s.kind, "prompts": len(s.items), "later_turns": s.later_turns}
            for s in sources
        ],
        "prompts": _fates(prompts),
        "answers": _fates(answers),
        "kept": {
            "with_best_answer": sum(item.best is not None for item in good),
            "with_ranked_answers": sum(bool(item.ranked) for item in good),
            "with_neither": sum(item.best is None and not item.ranked for item in good),
        },
        "files": {name: _size(rows) for name, rows in files.items()},
        "unused": len(good) - sum(map(len, files.values())),
    }


def render_report(report: Row) -> str:
    """The same as a table."""
    lines = [["read", "prompts", "later turns"]]
    lines += [
        [f"  {s['file']} ({s['kind']})", str(s["prompts"]), str(s["later_turns"])]
        for s in report["sources"]
    ]
    lines.append(["became of it", "prompts", "answers"])
    fates = dict.fromkeys([*report["prompts"]["fates"], *report["answers"]["fates"]])
    lines += [
        [f"  {fate}", *(str(report[key]["fates"].get(fate, "–")) for key in ("prompts", "answers"))]
        for fate in fates
    ]
    lines.append(["kept prompts", "prompts", ""])
    lines += [[f"  {n.replace('_', ' ')}", str(count), ""] for n, count in report["kept"].items()]
    lines.append(["written", "prompts", "answers"])
    lines += [
        [f"  {name}.jsonl", str(size["prompts"]), str(size["answers"])]
        for name, size in report["files"].items()
    ]
    lines.append(["  left over", str(report["unused"]), ""])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(_line(cells, widths) for cells in lines) + "\n"


def _fates(counts: Counter[str]) -> Row:
    """`kept` first, then the reasons, the commonest first."""
    reasons = sorted(counts.items(), key=lambda entry: (entry[0] != KEPT, -entry[1], entry[0]))
    return {"read": counts.total(), "fates": {KEPT: 0} | dict(reasons)}


def _size(rows: Sequence[Row]) -> Row:
    answers = (len(row["responses"]) if "responses" in row else "response" in row for row in rows)
    return {"prompts": len(rows), "answers": sum(answers)}


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = cells
    columns = (number.rjust(width) for number, width in zip(numbers, widths[1:]))
    return "   ".join([name.ljust(widths[0]), *columns]).rstrip()
