"""Trains by DPO, and chooses which of the checkpoints on the way becomes the next model.

```
  by = last       M2
  by = judge      M2.steps/step-200 ◀ step-400 ◀ … : the last that still wins over the one before
  by = accuracy   the one that prefers most often what was chosen, in pairs that were held back
```
Nothing here sees what the models are measured on: validation prompts are a file of their own.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dpo.reference import Reference
from judge import Rubric, judge_in_parts, mean_score
from judge.compare import outcome_of_scores
from loop import axes
from loop.examples import Example
from loop.models import Models
from loop.rows import Row, Rows, as_items
from loop.run import Run
from loop.settings import Settings
from sampling.respond import respond_in_parts

LAST = "last"  # the candidate that is the end of the training
Pairs = Sequence[Mapping[str, Any]]


class Choice:
    """How a run chooses. Raises ValueError if it has nothing to choose by."""

    def __init__(
        self, run: Run, settings: Settings, models: Models, validation: Rows, rubric: Rubric
    ) -> None:
        self.run, self.settings, self.models, self.rubric = run, settings, models, rubric
        self.how = settings.choice
        self.prompts = validation[: self.how.prompts]
        if self.how.by == "judge" and not self.prompts:
            raise ValueError(
                "the seed data have no validation.jsonl (rows {id, prompt}) to choose by: "
                "add it, or choice.by=last"
            )

    def dpo(self, name: str, start: Path, pairs: Pairs, replay: Sequence[Example]) -> Path:
        """The stage `name`: a copy of `start`, trained on pairs with `start` as the reference."""
        if self.how.by == "last":
            return self.models.dpo(name, start, pairs, replay, self.settings.dpo)
        learnt, held_back = list(pairs), list[Mapping[str, Any]]()
        if self.how.by == "accuracy":
            held_back = learnt[:: self.how.hold_back]
            del learnt[:: self.how.hold_back]
        steps = self.models.dpo(
            f"{name}.steps", start, learnt, replay, self.settings.dpo, keep_every=self.how.every
        )
        candidates = {path.name: path for path in sorted(steps.glob("step-*"), key=_number)}
        candidates[LAST] = steps
        choose = {"judge": self._by_judge, "accuracy": self._by_accuracy}[self.how.by]
        found = self.run.json(
            f"{name}.choice/choice.json",
            lambda: choose(name, start, candidates, held_back),
            f"{name}: choosing a checkpoint",
        )
        title, chosen = f"{name}: {found['chosen']} is chosen", candidates[found["chosen"]]
        return self.run.copy(name, chosen, self.run.counts(f"{name}.steps"), title)

    def _by_judge(
        self, name: str, start: Path, candidates: Mapping[str, Path], held_back: Pairs
    ) -> Row:
        """Each candidate's answers to the validation prompts against those of the one before."""
        judge = start if self.how.judge == "current" else Path(self.how.judge)
        answers = {which: self._answers(name, which, path) for which, path in candidates.items()}
        scores = {which: self._scores(name, which, judge, rows) for which, rows in answers.items()}
        names = list(candidates)
        duels = [
            {"name": now, "against": before, **duel(scores[now], scores[before])}
            for before, now in pairwise(names)
        ]
        return {"chosen": last_winner(names[0], duels), "duels": duels}

    def _by_accuracy(
        self, name: str, start: Path, candidates: Mapping[str, Path], held_back: Pairs
    ) -> Row:
        """How often each candidate's reward of the chosen answer is above that of the rejected."""
        reference, *policies = (
            self._logps(name, which, path, held_back)
            for which, path in {"start": start, **candidates}.items()
        )
        accuracy = {
            which: reward_accuracy(policy, reference) for which, policy in zip(candidates, policies)
        }
        best = max(accuracy.values())
        chosen = next(which for which, share in accuracy.items() if share == best)
        return {"chosen": chosen, "pairs": len(held_back), "accuracy": accuracy}

    def _answers(self, name: str, which: str, path: Path) -> Rows:
        complete, seed = self.models.complete(path), self.settings.seed
        how = self.settings.responses.decoding
        return self.run.rows_in_units(
            f"{name}.choice/{which}-answers.jsonl",
            self.prompts,
            partial(respond_in_parts, complete, n=1, seed=seed, **how),
            f"{name}.{which}: validation prompts",
            unit=self.settings.machine.unit,
        )

    def _scores(self, name: str, which: str, judge: Path, answers: Rows) -> dict[str, float | None]:
        """The mean score of each prompt's answer."""
        complete, how = self.models.complete(judge), self.settings.judging
        asking = how.asking | {"k": how.k, "seed": self.settings.seed}
        judgements = self.run.rows_in_units(
            f"{name}.choice/{which}-judgements.jsonl",
            as_items(self.prompts, answers),
            lambda parts: judge_in_parts(complete, self.rubric, parts, **asking),
            f"{name}.{which}: judging its answers",
            unit=self.settings.machine.unit,
        )
        return _means(answers, judgements)

    def _logps(self, name: str, which: str, path: Path, pairs: Pairs) -> Reference:
        """`Models.pair_logps`, kept: JSON has fp32 numbers to the last bit."""

        def make() -> Rows:
            logps = zip(*(some.tolist() for some in self.models.pair_logps(path, pairs)))
            return [
                {"id": pair["id"], "chosen": chosen, "rejected": rejected}
                for pair, (chosen, rejected) in zip(pairs, logps)
            ]

        rows = self.run.rows(
            f"{name}.choice/{which}-logps.jsonl", make, f"{name}.{which}: pairs held back"
        )
        chosen, rejected = ([row[key] for row in rows] for key in ("chosen", "rejected"))
        return torch.tensor(chosen), torch.tensor(rejected)


def duel(ours: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> dict[str, int]:
    """Prompts on which ours scores higher (`win`), equal, lower; `unread` where either has none."""
    return axes.count([{"outcome": outcome_of_scores(ours[name], theirs[name])} for name in ours])


def last_winner(first: str, duels: Sequence[Row]) -> str:
    """The last of an unbroken row of candidates each of which won over the one before it."""
    chosen = first
    for row in duels:
        if row["win"] <= row["loss"]:
            break
        chosen = row["name"]
    return chosen


def _means(answers: Rows, judgements: Rows) -> dict[str, float | None]:
    """Each prompt's mean score; None for an answer that was cut off."""
    scores: dict[str, list[float | None]] = {row["id"]: [] for row in answers}
    for row in judgements:
        scores[row["response_id"]].append(row["score"])
    means = {row["prompt_id"]: mean_score(scores[row["id"]]) for row in answers if row["finished"]}
    return {row["prompt_id"]: means.get(row["prompt_id"]) for row in answers}


def reward_accuracy(policy: Reference, reference: Reference) -> float:
    """How often the chosen response's log-probability has grown more than the rejected one's."""
    chosen, rejected = (now - before for now, before in zip(policy, reference))
    return float((chosen > rejected).double().mean())


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
