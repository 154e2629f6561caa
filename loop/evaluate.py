"""Measures a model on both axes: how well it follows instructions, and how well it judges.

Knows no oracle: where a program can tell the truth, it comes in as a function of (prompt,
response), from the one place that may know it, and what it says goes into the report and nowhere
else.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from judge import (
    Rubric,
    canary_items,
    canary_scores,
    compare_responses,
    judge_responses,
    metrics,
    ranked_items,
    ranked_sets,
)
from loop.files import read_jsonl
from loop.rows import Row
from loop.run import Run
from loop.settings import Settings
from sampling.respond import Complete, respond
from seed.read import Seed

Truth = Callable[[str, str], Mapping[str, bool] | None]  # the criteria that a response meets

SAMPLED, GREEDY = "sampled", "greedy"
CANARY_PROMPTS = 16


class Evaluation:
    """The held-out data of a run, and what each of its models makes of them."""

    def __init__(self, run: Run, settings: Settings, seed: Seed, rubric: Rubric) -> None:
        self.run, self.settings, self.rubric = run, settings, rubric
        self.prompts = seed.held_out[: settings.evaluation.instructions]
        self.ranked = seed.ranked[: settings.evaluation.ranked]

    def measure(
        self, name: str, before: str | None, complete: Complete, truth: Truth | None
    ) -> Row:
        """Writes a model's answers and judgements of the held-out data and `eval.json`; returns
        the latter. `name`, `before`: the directories of the model and of its predecessor, if any.

        truth: None where no program knows it; then the model, as a judge, compares its answers with
        its predecessor's.
        """
        level = self.settings.evaluation.level
        answers = self.run.rows(
            f"{name}/eval_answers.jsonl",
            lambda: self._answers(complete, truth),
            f"{name}: held-out instructions",
        )
        judgements = self.run.rows(
            f"{name}/eval_judgements.jsonl",
            lambda: self._judgements(complete),
            f"{name}: held-out ranked answers",
        )
        theirs = None if before is None else self._answers_of(before)
        axis = following(answers, theirs, level)
        if truth is None and theirs is not None:
            compared = self.run.rows(
                f"{name}/eval_compared.jsonl",
                lambda: self._compared(complete, answers, theirs),
                f"{name} against {before}",
            )
            axis |= win_rate(compared, level)
        return self.run.json(
            f"{name}/eval.json",
            lambda: {
                "instruction_following": axis,
                "judging": judging(self.ranked, judgements, level),
            },
            f"{name}: both axes",
        )

    def _answers(self, complete: Complete, truth: Truth | None) -> list[Row]:
        """`samples` sampled answers to each prompt and a greedy one; beside each, what the truth
        says of it.
        """
        how, longest = self.settings.evaluation, self.settings.responses.max_new_tokens
        ways = (
            (SAMPLED, how.samples, how.temperature, how.top_p),
            (GREEDY, 1, 0.0, 1.0),
        )
        text_of = {row["id"]: row["prompt"] for row in self.prompts}
        rows = []
        for mode, n, temperature, top_p in ways:
            answers = respond(
                complete,
                self.prompts,
                n=n,
                seed=self.settings.seed,
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=longest,
            )
            for row in answers:
                points = truth(text_of[row["prompt_id"]], row["text"]) if truth else None
                rows.append(row | {"id": f"{row['id']}.{mode}", "mode": mode, "points": points})
        return rows

    def _judgements(self, complete: Complete) -> list[Row]:
        """Of every ranked answer, and of the canaries on the first few prompts."""
        return judge_responses(
            complete,
            self.rubric,
            [*ranked_items(self.ranked), *canary_items(self.ranked[:CANARY_PROMPTS])],
            k=self.settings.judging.k,
            seed=self.settings.seed,
            **self.settings.judging.asking,
        )

    def _answers_of(self, name: str) -> list[Row]:
        return read_jsonl((self.run.root / name / "eval_answers.jsonl").read_bytes())

    def _compared(
        self, complete: Complete, ours: Sequence[Row], theirs: Sequence[Row]
    ) -> list[Row]:
        """Both models' greedy answers, each pair shown to the judge in both orders."""
        ours_of, theirs_of = (
            {row["prompt_id"]: row["text"] for row in rows if row["mode"] == GREEDY}
            for rows in (ours, theirs)
        )
        items = [
            {
                "id": row["id"],
                "prompt": row["prompt"],
                "ours": ours_of[row["id"]],
                "theirs": theirs_of[row["id"]],
            }
            for row in self.prompts
        ]
        how = self.settings.judging.decoding | {"temperature": 0.0}
        return compare_responses(complete, items, seed=self.settings.seed, **how)


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
    report |= _mean("truth_score", _tallies(answers, SAMPLED, _total), level)
    report |= _mean("truth_perfect", _tallies(answers, SAMPLED, _perfect), level)
    report |= _mean("greedy_perfect", _tallies(answers, GREEDY, _perfect), level)
    if before is not None:
        report |= _mean("win_rate_vs_previous", _wins(answers, before), level)
    report["criteria"] = {
        name: fmean(row["points"][name] for row in sampled) for name in sampled[0]["points"]
    }
    return report


def judging(ranked: Sequence[Row], judgements: Sequence[Row], level: float) -> Row:
    """The axis of judging: the five metrics with their intervals, and how the canaries were
    scored.
    """
    report: Row = dict(metrics.summary(ranked_sets(ranked, judgements), level=level))
    report["canaries"] = canary_scores(ranked[:CANARY_PROMPTS], judgements)
    scores = [row["score"] for row in judgements if row["score"] is not None]
    report["mean_score"] = fmean(scores) if scores else None
    return report


def win_rate(comparisons: Sequence[Row], level: float) -> Row:
    """Wins and half the ties among the comparisons that were read, with counts."""
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    read = [row["outcome"] for row in comparisons if row["outcome"] is not None]
    counts = {name: read.count(name) for name in worth} | {"unread": len(comparisons) - len(read)}
    tallies = [(worth[outcome], 1.0) for outcome in read]
    return _mean("win_rate_vs_previous", tallies, level) | {"head_to_head": counts}


def _total(row: Row) -> float:
    return float(sum(row["points"].values()))


def _perfect(row: Row) -> float:
    return float(all(row["points"].values()))


def _tallies(
    answers: Sequence[Row], mode: str, measure: Callable[[Row], float]
) -> list[tuple[float, float]]:
    """Sum and count of a measure, per prompt."""
    groups: dict[str, list[float]] = {}
    for row in answers:
        if row["mode"] == mode:
            groups.setdefault(row["prompt_id"], []).append(measure(row))
    return [(sum(values), float(len(values))) for values in groups.values()]


def _wins(answers: Sequence[Row], before: Sequence[Row]) -> list[tuple[float, float]]:
    """Per prompt: of the k-th samples of both, how often ours has more points; a tie is half a
    win.
    """
    theirs = {row["id"]: _total(row) for row in before}
    return _tallies(
        answers,
        SAMPLED,
        lambda row: (
            0.5 + 0.5 * ((_total(row) > theirs[row["id"]]) - (_total(row) < theirs[row["id"]]))
        ),
    )


def _mean(name: str, tallies: Sequence[tuple[float, float]], level: float) -> Row:
    interval = metrics.bootstrap_interval(tallies, seed=0, level=level)
    if interval is None:
        return {name: None, f"{name}_ci": None}
    value = sum(total for total, _ in tallies) / sum(count for _, count in tallies)
    return {name: value, f"{name}_ci": list(interval)}
