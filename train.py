"""Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020): the whole loop.

M0 ── SFT on seed answers and seed judgements ──▶ M1
new prompts ─ M_t ─▶ N answers each ─ M_t ─▶ K judgements each ─▶ best against worst ─ DPO ─▶ M_t+1

python train.py                                    the embedded small world, on a laptop
torchrun --nproc-per-node 8 train.py --preset paper --model DIR --prompt-model DIR --seed-data DIR
"""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from judge import answer_pairs, judge_in_parts, load_rubric
from loop.choice import Choice
from loop.command import run_command
from loop.evaluate import Evaluation
from loop.examples import Example, answered, judged, placed
from loop.meta import MetaRewarding
from loop.models import BASELINE, Models
from loop.practice import Practice
from loop.rows import Row, Rows, as_items
from loop.run import Run
from loop.settings import Settings
from sampling.respond import respond_in_parts
from sampling.self_instruct import write_prompts
from sampling.sieve import Sieve
from seed.start import Start, open_start


class SelfRewarding:
    """One run. A step that an earlier call has finished returns what is on the disk."""

    def __init__(self, run: Run, settings: Settings, given: Start, models: Models) -> None:
        self.run, self.settings, self.given, self.models = run, settings, given, models
        self.rubric = load_rubric(settings.judging.rubric)
        self.meta = MetaRewarding(run, settings, models, self.rubric)
        self.choice = Choice(run, settings, models, given.seed.validation, self.rubric)
        self.evaluation = Evaluation(run, settings, models, given.seed, self.rubric)
        self.practice = Practice(run, settings, given.seed.eft_ranked)
        self.first = 1 if given.seed.eft else 0  # 0: SFT on IFT alone, to make the EFT rows

    def train(self) -> int:
        """(SFT baseline →) M1 → M2 → … → MN, each measured on both axes; returns N."""
        for t in range(self.first, 2):
            examples = self.seed_examples(t)
            self.models.sft(self.name(t), self.given.model, examples, self.settings.sft)
            self.evaluate(t)
        while t < self.settings.iterations and not self.evaluation.ended:
            self.improve(t)
            t += 1
            self.evaluate(t)
        return t

    def improve(self, t: int) -> None:
        """M_t+1: M_t trained on its own answers to new prompts, as it judged them itself."""
        prompts = self.write_prompts(t)
        responses = self.answer(t, prompts)
        judgements = self.judge(t, prompts, responses)
        pairs = self.pair(t, prompts, responses, judgements)
        pairs += self.meta.pairs(t, self.name(t), prompts, responses, judgements)
        replay = self.seed_examples() + self.practise(t)
        self.choice.dpo(self.name(t + 1), self.model(t), pairs, replay)

    def write_prompts(self, t: int) -> Rows:
        """New prompts, after the manner of the seed's, by M0 or whom the settings name."""
        how, ift, kept_out = self.settings.prompts, self.given.seed.ift, self.given.kept_out
        writers = {"base": self.given.model, "current": self.model(t)}
        complete = self.models.complete(writers.get(how.writer, Path(how.writer)))
        write = partial(write_prompts, complete, ift, seed=self.seed(t), **how.writing)
        return self.run.rows_in_rounds(
            f"{self.name(t)}/prompts.jsonl",
            lambda keep: write(keep=keep, sieve=Sieve(forbidden=kept_out, **how.filters)),
            f"{self.name(t)}: new prompts",
        )

    def answer(self, t: int, prompts: Rows) -> Rows:
        """N candidates to each prompt."""
        complete, how = self.models.complete(self.model(t)), self.settings.responses
        return self.run.rows_in_units(
            f"{self.name(t)}/responses.jsonl",
            prompts,
            partial(respond_in_parts, complete, n=how.n, seed=self.seed(t), **how.decoding),
            f"{self.name(t)}: candidate answers",
            unit=self.settings.machine.unit,
        )

    def judge(self, t: int, prompts: Rows, responses: Rows) -> Rows:
        """K judgements of each candidate, by the model that wrote it."""
        return self.run.rows_in_units(
            f"{self.name(t)}/judgements.jsonl",
            as_items(prompts, responses),
            lambda parts: self.ask_judge(t, parts, self.settings.judging.k),
            f"{self.name(t)}: judging itself",
            unit=self.settings.machine.unit,
        )

    def pair(self, t: int, prompts: Rows, responses: Rows, judgements: Rows) -> Rows:
        """The best answer of each prompt against the worst."""
        make = partial(answer_pairs, prompts, responses, judgements, **self.settings.pairs.choosing)
        return self.run.rows(f"{self.name(t)}/pairs.jsonl", make, f"{self.name(t)}: making pairs")

    def practise(self, t: int) -> list[Example]:
        """M_t judges what people ranked; where its scores order it alike, it learns from them."""
        rows, judged = self.practice.rows(t, self.name(t), partial(self.ask_judge, t), self.seed(t))
        return self.judged(rows) + self.meta.examples(self.practice.sets, judged)

    def evaluate(self, t: int) -> None:
        """Both axes. Only here the truth, where there is one, is seen; nothing learns from it."""
        before = self.name(t - 1) if t > self.first else None
        complete = self.models.complete(self.model(t))
        self.evaluation.measure(self.name(t), before, complete, self.given.truth)

    def seed_examples(self, t: int = 1) -> list[Example]:
        """IFT (instruction → answer); from M1 on EFT too (the judge's prompt → judgement)."""
        eft = placed("eft.jsonl", self.judged(self.given.seed.eft)) or self.practise(0) if t else []
        if t and not eft:
            raise ValueError(f"no judgement of {self.model(0)} agrees with people; give eft.jsonl")
        return placed("ift.jsonl", map(answered, self.given.seed.ift)) + eft

    def judged(self, rows: Rows) -> list[Example]:
        """Rows with a judgement: the judge's prompt, and what it should reply."""
        return [judged(self.rubric, row) for row in rows]

    def ask_judge(self, t: int, parts: Sequence[Sequence[Row]], k: int) -> Iterable[Rows]:
        """k judgements by M_t of each item, part by part."""
        complete, how = self.models.complete(self.model(t)), self.settings.judging.asking
        return judge_in_parts(complete, self.rubric, parts, k=k, seed=self.seed(t), **how)

    def name(self, t: int) -> str:
        """M_t's directory in the run; what it makes to teach M_t+1 lies there too."""
        return f"M{t}" if t else BASELINE

    def model(self, t: int) -> Path:
        """Where M_t lies."""
        return self.run.root / self.name(t)

    def seed(self, t: int) -> int:
        """Of the randomness of iteration t."""
        return 1000 * self.settings.seed + t


if __name__ == "__main__":
    sys.exit(run_command(open_start, SelfRewarding))
