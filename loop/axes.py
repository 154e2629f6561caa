"""Answers and judgements as numbers: the two axes, and the signs beside them. Pure functions over
rows; knows no model, no file and no oracle: what the truth said stands in the rows as `points`.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from judge import canary_scores, length_controlled, metrics, ranked_sets
from judge.bootstrap import means
from judge.signs import rank_length, ranked_groups, signs
from loop.rows import Row
from loop.texts import text_signs, word_count

SAMPLED, GREEDY = "sampled", "greedy"
CANARY_PROMPTS = 16
WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}
Tally = tuple[float, float]  # sum and count
Duel = tuple[str, float, int]  # the prompt, what ours got (1, ½, 0), how many words it is longer


def following(answers: Sequence[Row], before: Sequence[Row] | None, level: float) -> Row:
    """The axis of following instructions, from the answers of a model and of the one before it.

    The unit of every interval is the prompt. Without truth only lengths can be told.
    """
    sampled = [row for row in answers if row["mode"] == SAMPLED]
    report: Row = {
        "mean_tokens": fmean(row["token_count"] for row in sampled),
        "finished": fmean(row["finished"] for row in sampled),
    }
    if answers[0]["points"] is None:
        return report
    tallies = {
        "truth_score": _tallies(answers, SAMPLED, _total),
        "truth_perfect": _tallies(answers, SAMPLED, _perfect),
        "greedy_perfect": _tallies(answers, GREEDY, _perfect),
    }
    report |= means(tallies, level=level)
    if before is not None:
        report |= win_rates("win_rate_vs_previous", true_duels(answers, before), level)
    report["criteria"] = {
        name: fmean(row["points"][name] for row in sampled) for name in sampled[0]["points"]
    }
    return report


def judging(
    ranked: Sequence[Row],
    judgements: Sequence[Row],
    before: Sequence[Row] | None,
    best: float,
    level: float,
) -> Row:
    """The axis of judging: the metrics with their intervals, how the canaries were scored, and
    by how much the pairwise accuracy exceeds that of the judge before, on the same sets. best: the
    rubric's highest score.
    """
    sets = ranked_sets(ranked, judgements)
    report: Row = dict(metrics.summary(sets, level=level, best=best))
    report["canaries"] = canary_scores(ranked[:CANARY_PROMPTS], judgements)
    if before is not None:
        gain = metrics.difference(sets, ranked_sets(ranked, before), level=level, best=best)
        report["gain_vs_previous"] = gain["pairwise_accuracy"]
        report["gain_vs_previous_ci"] = gain["pairwise_accuracy_ci"]
    return report


def answer_signs(answers: Sequence[Row], drift: Sequence[Row], level: float) -> Row:
    """Lengths and diversity of the sampled answers, and how far the model has moved from M1.

    drift: rows of `loop.models.Models.drift`; none where there is nothing to compare with.
    """
    report = text_signs([row for row in answers if row["mode"] == SAMPLED], level)
    moved = [(row["logp"] - row["logp_before"], 1.0) for row in drift]
    return report | means({"kl_to_m1": moved}, level=level)


def score_signs(ranked: Sequence[Row], judgements: Sequence[Row], high: float, level: float) -> Row:
    """What the scores of ranked answers look like, and the length bias of people's own order."""
    report = signs(ranked_groups(ranked, judgements), high, level)
    return report | rank_length(ranked, level)


def head_to_head(name: str, rows: Sequence[Row], items: Sequence[Row], level: float) -> Row:
    """`win_rates` of comparisons `{id, outcome}` of items `{id, prompt, ours, theirs}`, with the
    numbers of wins, ties and losses.
    """
    return win_rates(name, duels(rows, longer_by(items)), level) | {"head_to_head": count(rows)}


def win_rates(name: str, found: Sequence[Duel], level: float) -> Row:
    """Wins and half the ties, under `name`, and the same at equal length, under `lc_name`, with
    intervals over prompts; None of nothing.
    """
    tallies: dict[str, list[float]] = {}
    for prompt, worth, _ in found:
        tallies.setdefault(prompt, []).append(worth)
    report: Row = means({name: [(sum(w), float(len(w))) for w in tallies.values()]}, level=level)
    prompts, worths, longer = zip(*found) if found else ((), (), ())
    controlled = length_controlled(worths, longer, prompts, seed=0, level=level)
    report[f"lc_{name}"] = controlled[0] if controlled else None
    report[f"lc_{name}_ci"] = list(controlled[1:]) if controlled else None
    return report


def duels(rows: Sequence[Row], words: Mapping[str, int]) -> list[Duel]:
    """The comparisons `{id, outcome}` that were read."""
    read = [row for row in rows if row["outcome"] is not None]
    return [(row["id"], WORTH[row["outcome"]], words[row["id"]]) for row in read]


def count(rows: Sequence[Row]) -> dict[str, int]:
    """How many comparisons are won, tied, lost, and how many could not be read."""
    outcomes = [row["outcome"] for row in rows]
    return {name: outcomes.count(name) for name in WORTH} | {"unread": outcomes.count(None)}


def true_duels(answers: Sequence[Row], before: Sequence[Row]) -> list[Duel]:
    """Of the k-th samples of both, which one has more points."""
    theirs = {row["id"]: row for row in before}
    found = []
    for row in answers:
        if row["mode"] == SAMPLED:
            ours, other = _total(row), _total(theirs[row["id"]])
            worth = 0.5 + 0.5 * ((ours > other) - (ours < other))
            longer = word_count(row) - word_count(theirs[row["id"]])
            found.append((row["prompt_id"], worth, longer))
    return found


def side_by_side(
    prompts: Sequence[Row], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> list[Row]:
    """What two models answered, `{prompt id: text}`, as items to be compared `{id, prompt, ours,
    theirs}`.
    """
    return [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "ours": ours[row["id"]],
            "theirs": theirs[row["id"]],
        }
        for row in prompts
    ]


def longer_by(items: Sequence[Row]) -> dict[str, int]:
    """By how many words our answer to each prompt is longer than theirs."""
    return {row["id"]: len(row["ours"].split()) - len(row["theirs"].split()) for row in items}


def greedy_texts(answers: Sequence[Row]) -> dict[str, str]:
    """The greedy answer to each prompt id."""
    return {row["prompt_id"]: row["text"] for row in answers if row["mode"] == GREEDY}


def _total(row: Row) -> float:
    return float(sum(row["points"].values()))


def _perfect(row: Row) -> float:
    return float(all(row["points"].values()))


def _tallies(answers: Sequence[Row], mode: str, measure: Callable[[Row], float]) -> list[Tally]:
    """Sum and count of a measure, per prompt."""
    groups: dict[str, list[float]] = {}
    for row in answers:
        if row["mode"] == mode:
            groups.setdefault(row["prompt_id"], []).append(measure(row))
    return [(sum(values), float(len(values))) for values in groups.values()]
