"""Measures a model on both axes: how well it follows instructions, and how well it judges.

Knows no oracle: where a program can tell the truth, it comes in as a function of (prompt,
response), from the one place that may know it, and what it says goes into the report and nowhere
else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

from judge import (
    Rubric,
    canary_items,
    compare_in_parts,
    judge_in_parts,
    ranked_items,
    scores_in_parts,
)
from judge.signs import response_groups, signs
from loop import axes, health
from loop.account import PARTS, read_evaluation, read_measured
from loop.axes import CANARY_PROMPTS, GREEDY, SAMPLED
from loop.files import read_jsonl
from loop.models import BASELINE, Models
from loop.rows import Row
from loop.run import Run
from loop.settings import Settings
from sampling.respond import Complete, respond_in_parts
from seed.read import Seed

Truth = Callable[[str, str], Mapping[str, bool] | None]  # the criteria that a response meets
Asked = tuple[str, Row]  # in which mode, and a prompt


class Evaluation:
    """The held-out data of a run, and what each of its models makes of them.

    `ended`: whether a run until-plateau has come to its end.
    """

    def __init__(
        self, run: Run, settings: Settings, models: Models, seed: Seed, rubric: Rubric
    ) -> None:
        self.run, self.settings, self.models, self.rubric = run, settings, models, rubric
        self.level = settings.evaluation.level
        self.prompts = seed.held_out[: settings.evaluation.instructions]
        self.ranked = seed.ranked[: settings.evaluation.ranked]
        self.ended = False
        self._measured: list[str] = []  # M1 and what came of it
        self._said: list[health.Finding] = []

    def measure(
        self, name: str, before: str | None, complete: Complete, truth: Truth | None
    ) -> Row:
        """Writes a model's answers and judgements of the held-out data and `eval.json`; returns
        the latter. `name`, `before`: the directories of the model and of its predecessor, if any.

        truth: None where no program knows it; then the model, as a judge, compares its answers with
        its predecessor's.
        """
        answers = self._in_units(
            f"{name}/eval_answers.jsonl",
            [(mode, row) for mode in (SAMPLED, GREEDY) for row in self.prompts],
            lambda parts: self._answers(complete, truth, parts),
            f"{name}: held-out instructions",
        )
        judgements = self._in_units(
            f"{name}/eval_judgements.jsonl",
            [*ranked_items(self.ranked), *canary_items(self.ranked[:CANARY_PROMPTS])],
            lambda parts: judge_in_parts(complete, self.rubric, parts, **self._asking),
            f"{name}: held-out ranked answers",
        )
        compared: list[Row] = []
        if truth is None and before is not None:
            how = self.settings.judging.decoding | {"temperature": 0.0}
            compared = self._in_units(
                f"{name}/eval_compared.jsonl",
                self._beside(answers, before),
                partial(compare_in_parts, complete, seed=self.settings.seed, **how),
                f"{name} against {before}",
            )
        self._progress(name, before, complete, answers)
        drift = self._drift(name)
        evaluation = self.run.json(
            f"{name}/eval.json",
            lambda: self._numbers(before, answers, judgements, compared, drift),
            f"{name}: both axes",
        )
        self._take_note(name, before)
        return evaluation

    def _numbers(
        self,
        before: str | None,
        answers: Sequence[Row],
        judgements: Sequence[Row],
        compared: Sequence[Row],
        drift: Sequence[Row],
    ) -> Row:
        theirs = self._read(before, "eval_answers.jsonl") if before else None
        following = axes.following(answers, theirs, self.level)
        if compared and before:
            items = self._beside(answers, before)
            following |= axes.head_to_head("win_rate_vs_previous", compared, items, self.level)
        judged = self._read(before, "eval_judgements.jsonl") if before else None
        best = self.rubric.high
        return {
            "instruction_following": following,
            "judging": axes.judging(self.ranked, judgements, judged, best, self.level),
            "answers": axes.answer_signs(answers, drift, self.level),
            "scores": axes.score_signs(self.ranked, judgements, best, self.level),
        }

    def _in_units(
        self,
        path: str,
        items: Sequence[Any],
        make: Callable[[list[Sequence[Any]]], Iterable[list[Row]]],
        title: str,
        finish: Callable[[list[Row]], list[Row]] | None = None,
    ) -> list[Row]:
        unit = self.settings.machine.unit
        return self.run.rows_in_units(path, items, make, title, unit=unit, finish=finish)

    @property
    def _asking(self) -> dict[str, Any]:
        """How the judge is asked for scores."""
        how = self.settings.judging
        return how.asking | {"k": how.k, "seed": self.settings.seed}

    def _answers(
        self, complete: Complete, truth: Truth | None, parts: Sequence[Sequence[Asked]]
    ) -> Iterator[list[Row]]:
        """`samples` sampled answers to a prompt, or a greedy one, part by part; beside each, what
        the truth says of it.
        """
        how = self.settings.evaluation
        ways: dict[str, dict[str, Any]] = {
            SAMPLED: {"n": how.samples, "temperature": how.temperature, "top_p": how.top_p},
            GREEDY: {"n": 1, "temperature": 0.0, "top_p": 1.0},
        }
        seed, longest = self.settings.seed, self.settings.responses.max_new_tokens
        text_of = {row["id"]: row["prompt"] for row in self.prompts}

        def answered(mode: str) -> Iterator[Row]:
            asked = [[row for way, row in part if way == mode] for part in parts]
            if not any(asked):
                return
            answers = respond_in_parts(
                complete,
                [part for part in asked if part],
                seed=seed,
                max_new_tokens=longest,
                **ways[mode],
            )
            for row in chain.from_iterable(answers):
                points = truth(text_of[row["prompt_id"]], row["text"]) if truth else None
                yield row | {"id": f"{row['id']}.{mode}", "mode": mode, "points": points}

        rows = chain.from_iterable(map(answered, ways))  # one way after the other
        for part in parts:
            yield list(islice(rows, sum(ways[mode]["n"] for mode, _ in part)))

    def _beside(self, ours: Sequence[Row], before: str) -> list[Row]:
        """Items `{id, prompt, ours, theirs}` of both models' greedy answers."""
        theirs = self._read(before, "eval_answers.jsonl")
        return axes.side_by_side(self.prompts, axes.greedy_texts(ours), axes.greedy_texts(theirs))

    def _progress(
        self, name: str, before: str | None, complete: Complete, answers: Sequence[Row]
    ) -> None:
        """What a run until-plateau goes by on the axis of following: the newest judge's scores of
        its own answers and of its predecessor's. The truth has no part in it.
        """
        if not self.settings.until_plateau or before is None or not self._measured:
            return
        items = self._beside(answers, before)
        rows = self._in_units(
            f"{name}/eval_duels.jsonl",
            items,
            lambda parts: scores_in_parts(complete, self.rubric, parts, **self._asking),
            f"{name} against {before}, by its own scores",
        )
        self.run.json(
            f"{name}/{PARTS['progress']}",
            lambda: axes.head_to_head("judged_win_rate", rows, items, self.level),
            f"{name}: progress",
        )

    def _drift(self, name: str) -> list[Row]:
        """Free samples with their log-probabilities by the model and by M1; none by M1 itself."""
        if not self.settings.evaluation.drift or not self._measured:
            return []
        root, first = self.run.root, self._measured[0]
        longest, seed = self.settings.responses.max_new_tokens, self.settings.seed
        return self._in_units(
            f"{name}/eval_drift.jsonl",
            self.prompts[: self.settings.evaluation.drift],
            lambda parts: self.models.speak_freely(root / name, parts, longest, seed),
            f"{name}: how far from {first}",
            finish=partial(self.models.drift, root / name, root / first),
        )

    def _take_note(self, name: str, before: str | None) -> None:
        """Says what is newly found to be wrong, and decides whether the run goes on."""
        if before and self.run.has(f"{before}/judgements.jsonl"):
            self.run.json(
                f"{before}/{PARTS['own_scores']}",
                lambda: self._own_scores(before),
                f"{before}: how it scored its own answers",
            )
        if name == BASELINE:
            return
        self._measured.append(name)
        *before_it, _ = self._measured
        evaluations = {name: read_evaluation(self.run, name) for name in before_it}
        evaluations[name] = read_measured(self.run, name)  # a run taken up again may know more
        found = health.findings(evaluations)
        for finding in found:
            if finding not in self._said:
                self.run.say(f"health: {finding.line}")
        self._said = found
        if self.settings.until_plateau and (why := health.ending(evaluations, found)):
            self.run.say(f"until-plateau: {why}; {name} is the last model")
            self.ended = True

    def _own_scores(self, name: str) -> Row:
        """What the scores look like that the next model was taught by."""
        groups = response_groups(
            self._read(name, "responses.jsonl"), self._read(name, "judgements.jsonl")
        )
        return signs(groups, self.rubric.high, self.level)

    def _read(self, name: str, file: str) -> list[Row]:
        return read_jsonl(self.run.read(f"{name}/{file}"))
