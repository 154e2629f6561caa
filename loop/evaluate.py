"""Measures a model on both axes: how well it follows instructions, and how well it judges.

Knows no oracle: where a program can tell the truth, it comes in as a function of (prompt,
response), from the one place that may know it, and what it says goes into the report and nowhere
else.
"""

from collections.abc import Callable, Mapping, Sequence

from judge import (
    Rubric,
    canary_items,
    compare_responses,
    compare_scores,
    judge_responses,
    ranked_items,
)
from judge.signs import response_groups, signs
from loop import axes, health
from loop.account import PARTS, read_evaluation
from loop.axes import CANARY_PROMPTS, GREEDY, SAMPLED
from loop.files import read_jsonl
from loop.models import BASELINE, Models
from loop.rows import Row
from loop.run import Run
from loop.settings import Settings
from sampling.respond import Complete, respond
from seed.read import Seed

Truth = Callable[[str, str], Mapping[str, bool] | None]  # the criteria that a response meets

TAUGHT = ("own_scores", "counts")  # known of a model once it has taught the next


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
        compared: list[Row] = []
        if truth is None and before is not None:
            compared = self.run.rows(
                f"{name}/eval_compared.jsonl",
                lambda: self._compared(complete, answers, before),
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
        return {
            "instruction_following": following,
            "judging": axes.judging(self.ranked, judgements, judged, self.level),
            "answers": axes.answer_signs(answers, drift, self.level),
            "scores": axes.score_signs(self.ranked, judgements, self.rubric.high, self.level),
        }

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

    def _compared(self, complete: Complete, ours: Sequence[Row], before: str) -> list[Row]:
        """Both models' greedy answers, each pair shown to the judge in both orders."""
        how = self.settings.judging.decoding | {"temperature": 0.0}
        items = self._beside(ours, before)
        return compare_responses(complete, items, seed=self.settings.seed, **how)

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
        how, items = self.settings.judging, self._beside(answers, before)
        rows = self.run.rows(
            f"{name}/eval_duels.jsonl",
            lambda: compare_scores(
                complete, self.rubric, items, k=how.k, seed=self.settings.seed, **how.asking
            ),
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
        prompts = self.prompts[: self.settings.evaluation.drift]
        longest, seed = self.settings.responses.max_new_tokens, self.settings.seed
        return self.run.rows(
            f"{name}/eval_drift.jsonl",
            lambda: self.models.drift(root / name, root / first, prompts, longest, seed),
            f"{name}: how far from {first}",
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
        evaluations = {name: read_evaluation(self.run, name) for name in self._measured}
        for later in TAUGHT:  # in a run that is taken up again it may lie there already
            evaluations[name].pop(later, None)
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
