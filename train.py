"""Self-Rewarding Language Models (Yuan et al. 2024, arXiv 2401.10020): the whole loop.

M0 ── SFT on seed answers and seed judgements ──▶ M1
M_t ─▶ new prompts ─▶ N answers each ─▶ K judgements of each ─▶ best against worst ── DPO ──▶ M_t+1

python train.py                                    the embedded small world, on a laptop
torchrun --nproc-per-node 8 train.py --preset paper --model DIR --seed-data DIR
"""

import sys
from functools import partial
from pathlib import Path

from judge import answer_pairs, judge_responses, judgement_pairs, load_rubric
from loop.command import run_command
from loop.evaluate import Evaluation
from loop.models import Models
from loop.rows import Rows, as_items
from loop.run import Run
from loop.settings import Settings
from sampling.respond import respond
from sampling.self_instruct import write_prompts
from sampling.sieve import Sieve
from seed.start import Start, open_start


class SelfRewarding:
    """One run. A step that an earlier call has finished returns what is on the disk."""

    def __init__(self, run: Run, settings: Settings, given: Start, models: Models) -> None:
        self.run, self.settings, self.given, self.models = run, settings, given, models
        self.rubric = load_rubric(settings.judging.rubric)
        self.evaluation = Evaluation(run, settings, given.seed, self.rubric)

    def train(self) -> None:
        """M1 → M2 → … → MN, each measured on both axes."""
        self.learn_seed()
        for t in range(1, self.settings.iterations + 1):
            self.evaluate(t)
            if t < self.settings.iterations:
                self.improve(t)

    def learn_seed(self) -> None:
        """M1: SFT of M0 on IFT (instruction → answer) and EFT (answer → judgement)."""
        examples = self.ift() + self.eft()
        self.models.sft(self.name(1), self.given.model, examples, self.settings.sft)

    def improve(self, t: int) -> None:
        """M_t+1: M_t trained on what it wrote, answered and judged itself."""
        prompts = self.write_prompts(t)
        responses = self.answer(t, prompts)
        judgements = self.judge(t, prompts, responses)
        pairs = self.pair(t, prompts, responses, judgements)
        self.models.dpo(self.name(t + 1), self.model(t), pairs, self.eft(), self.settings.dpo)

    def write_prompts(self, t: int) -> Rows:
        """New prompts, after the manner of the seed's; written by M0 unless the settings say so."""
        how = self.settings.prompts
        writer = {"base": self.given.model, "current": self.model(t)}.get(
            how.writer, Path(how.writer)
        )
        complete, ift = self.models.complete(writer), self.given.seed.ift
        sieve = partial(Sieve, forbidden=self.given.kept_out, **how.filters)
        return self.run.rows(
            f"{self.name(t)}/prompts.jsonl",
            lambda: write_prompts(complete, ift, sieve=sieve(), seed=self.seed(t), **how.writing),
            f"{self.name(t)}: new prompts",
        )

    def answer(self, t: int, prompts: Rows) -> Rows:
        """N candidates to each prompt."""
        complete, how = self.models.complete(self.model(t)), self.settings.responses
        return self.run.rows_in_units(
            f"{self.name(t)}/responses.jsonl",
            prompts,
            lambda part: respond(complete, part, n=how.n, seed=self.seed(t), **how.decoding),
            f"{self.name(t)}: candidate answers",
            unit=self.settings.machine.unit,
        )

    def judge(self, t: int, prompts: Rows, responses: Rows) -> Rows:
        """K judgements of each candidate, by the model that wrote it."""
        complete, how = self.models.complete(self.model(t)), self.settings.judging
        return self.run.rows_in_units(
            f"{self.name(t)}/judgements.jsonl",
            as_items(prompts, responses),
            lambda part: judge_responses(
                complete, self.rubric, part, k=how.k, seed=self.seed(t), **how.decoding
            ),
            f"{self.name(t)}: judging itself",
            unit=self.settings.machine.unit,
        )

    def pair(self, t: int, prompts: Rows, responses: Rows, judgements: Rows) -> Rows:
        """Best against worst; and, where asked for, the judge's majority against its deviations."""

        def make() -> tuple[Rows, dict[str, int]]:
            pairs, counts = answer_pairs(prompts, responses, judgements)
            if self.settings.pairs.judgements:
                items = as_items(prompts, responses)
                more, more_counts = judgement_pairs(items, judgements, self.rubric.render)
                pairs, counts = (
                    pairs + more,
                    counts | {f"judge_{k}": n for k, n in more_counts.items()},
                )
            return pairs, counts

        return self.run.rows(
            f"{self.name(t)}/pairs.jsonl", make, f"{self.name(t)}: preference pairs"
        )

    def evaluate(self, t: int) -> None:
        """Both axes. Here alone the truth, where there is one, is looked at; nothing learns from
        it.
        """
        before = self.name(t - 1) if t > 1 else None
        complete = self.models.complete(self.model(t))
        self.evaluation.measure(self.name(t), before, complete, self.given.truth)

    def ift(self) -> list[tuple[str, str]]:
        """The seed answers as examples."""
        return [(row["prompt"], row["response"]) for row in self.given.seed.ift]

    def eft(self) -> list[tuple[str, str]]:
        """The seed judgements as examples: the judge's prompt, and what it should reply."""
        render = self.rubric.render
        return [
            (render(row["prompt"], row["response"]), row["judgement"])
            for row in self.given.seed.eft
        ]

    def name(self, t: int) -> str:
        """M_t's directory in the run; what it makes to teach M_t+1 lies there too."""
        return f"M{t}"

    def model(self, t: int) -> Path:
        """Where M_t lies."""
        return self.run.root / self.name(t)

    def seed(self, t: int) -> int:
        """Of the randomness of iteration t."""
        return 1000 * self.settings.seed + t


if __name__ == "__main__":
    sys.exit(run_command(open_start, SelfRewarding))
