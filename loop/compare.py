"""Two models of a finished run, head to head. Knows no file but through `FinishedRun`."""

from collections.abc import Callable, Sequence
from itertools import combinations

from judge import Complete, compare_responses, compare_scores, load_rubric
from loop import axes
from loop.axes import GREEDY
from loop.finished import ANSWERS, FinishedRun
from loop.rows import Row, Rows

WAYS = ("pairwise", "scores", "truth")
Compare = Callable[[Rows], list[Row]]  # items {id, prompt, ours, theirs} → rows {id, outcome, …}


def pairs_of(run: FinishedRun, names: Sequence[str]) -> list[tuple[str, str]]:
    """Each of the models against each that stands after it; no names: the run's, newest first."""
    chosen = list(names) or run.models()[::-1]
    if len(chosen) < 2:
        found = ", ".join(chosen) or "none"
        raise ValueError(f"{run.root}: two models are needed to compare, found {found}")
    return list(combinations(chosen, 2))


def by_judge(run: FinishedRun, complete: Complete, way: str) -> Compare:
    """A judge that is shown both answers in both orders (pairwise), or that scores each by itself
    (scores), decoding as the run's judge does; a verdict is greedy.
    """
    how, seed = run.settings.judging, run.settings.seed
    if way == "pairwise":
        greedy = how.decoding | {"temperature": 0.0}
        return lambda items: compare_responses(complete, items, seed=seed, **greedy)
    rubric = load_rubric(how.rubric)
    return lambda items: compare_scores(complete, rubric, items, k=how.k, seed=seed, **how.asking)


def judged(run: FinishedRun, ours: str, theirs: str, compare: Compare) -> tuple[Row, list[Row]]:
    """What `compare` says of the greedy answers of two models, in numbers and row by row."""
    items = axes.side_by_side(run.prompts(), run.texts(ours, GREEDY), run.texts(theirs, GREEDY))
    rows = compare(items)
    numbers = axes.head_to_head("win_rate", rows, items, run.settings.evaluation.level)
    named = [{"ours": ours, "theirs": theirs} | row for row in rows]
    return {"ours": ours, "theirs": theirs} | numbers, named


def by_truth(run: FinishedRun, ours: str, theirs: str) -> tuple[Row, list[Row]]:
    """Which of the k-th sampled answers of both has more points, where a program gave points."""
    first, second = run.answers(ours), run.answers(theirs)
    if any(row.get("points") is None for row in (*first, *second)):
        raise ValueError(f"{run.root}: no program knows the truth of its answers; --by scores")
    known = {row["id"] for row in second}
    if missing := [
        row["id"] for row in first if row["mode"] == axes.SAMPLED and row["id"] not in known
    ]:
        raise ValueError(
            f"{run.root / theirs / ANSWERS}: lacks the answer {missing[0]!r}, which {ours} gave; "
            "the run's own command makes what is damaged again"
        )
    duels = axes.true_duels(first, second)
    outcomes = {worth: name for name, worth in axes.WORTH.items()}
    rows = [{"id": name, "outcome": outcomes[worth]} for name, worth, _ in duels]
    numbers = axes.win_rates("win_rate", duels, run.settings.evaluation.level)
    named = [{"ours": ours, "theirs": theirs} | row for row in rows]
    return {"ours": ours, "theirs": theirs} | numbers | {"head_to_head": axes.count(rows)}, named


def table(numbers: Sequence[Row]) -> str:
    """A line each comparison: shares of what could be read, win rate, the same at equal length."""
    heads = ("", "wins", "ties", "losses", "unread", "win rate", "at equal length")
    lines: list[tuple[str, ...]] = [heads]
    for row in numbers:
        counts = row["head_to_head"]
        read = sum(counts.values()) - counts["unread"]
        shares = (f"{counts[name] / read:.1%}" if read else "–" for name in axes.WORTH)
        rates = (_rate(row, "win_rate"), _rate(row, "lc_win_rate"))
        lines.append((f"{row['ours']} – {row['theirs']}", *shares, str(counts["unread"]), *rates))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in lines
    )


def _rate(row: Row, name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_ci"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"
