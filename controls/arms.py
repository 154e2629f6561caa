"""The arms of the experiment: the loop itself, and what it is compared with. Each is the loop with
one step replaced; all start from the same M1.

| arm | what is different | what it shows |
|---|---|---|
| loop | nothing | |
| random pairs | two answers at random instead of best against worst | judging matters |
| random choices | that, and practised judgements kept whatever people think | agreeing matters |
| oracle pairs | the truth scores the answers | how far any judge could lead |
| positive only | SFT on the answers that were given a full 5 | preferences matter |
| more SFT | SFT on the seeds, for as long as the loop's iteration took | time alone |
| replay only | SFT on the seed judgements, as many steps as DPO took | rehearsal alone |
| practice only | SFT on all that DPO has beside the pairs, as many steps | practice alone |
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

from judge import mean_score, ranked_items
from loop.examples import Example
from loop.rows import Row, Rows
from train import SelfRewarding

STAGES = (
    *("prompts.jsonl", "responses.jsonl", "judgements.jsonl", "pairs.jsonl"),
    *("practice_judgements.jsonl", "practice.jsonl"),
)


class Arm(SelfRewarding):
    """The loop as one arm of several in a run: M1 is shared, the rest lies in its own directory."""

    label = "loop"

    def name(self, t: int) -> str:
        return "M1" if t == 1 else f"{self.label}/M{t}".replace(" ", "-")

    def own(self, t: int, file: str) -> str:
        """A file that belongs to this arm even where M_t is shared."""
        return f"{self.label}/{file}-of-M{t}.jsonl".replace(" ", "-")


class RandomPairs(Arm):
    label = "random pairs"

    def judge(self, t: int, prompts: Rows, responses: Rows) -> Rows:
        return []  # nobody asks

    def pair(self, t: int, prompts: Rows, responses: Rows, judgements: Rows) -> Rows:
        def draw(row: Row, answers: Rows) -> tuple[Row, Row]:
            first, second = Random(f"{self.seed(t)} {row['id']}").sample(answers, 2)
            return first, second

        return self.run.rows(
            self.own(t, "pairs"),
            lambda: _pairs(prompts, responses, draw),
            f"{self.label} of M{t}",
        )


class RandomChoices(RandomPairs):
    label = "random choices"

    def practise(self, t: int) -> list[Example]:
        """A judgement of every ranked answer, whatever order they give."""
        items = ranked_items(self.given.seed.eft_ranked)

        def read(judged: Rows) -> Rows:
            scored = (
                (item, row["text"]) for item, row in zip(items, judged) if row["score"] is not None
            )
            return [item | {"judgement": text} for item, text in scored]

        rows = self.run.rows_in_units(
            self.own(t, "practice"),
            items,
            lambda parts: self.ask_judge(t, parts, 1),
            f"{self.label} of M{t}",
            unit=self.settings.machine.unit,
            finish=read,
        )
        return self.judged(rows)


class OraclePairs(RandomPairs):
    """The one place where the truth teaches: a ceiling, not a method."""

    label = "oracle pairs"

    def pair(self, t: int, prompts: Rows, responses: Rows, judgements: Rows) -> Rows:
        truth = self.given.truth
        assert truth is not None, "the embedded world alone has a truth"

        def draw(row: Row, answers: Rows) -> tuple[Row, Row] | None:
            def worth(answer: Row) -> int:
                return sum((truth(row["prompt"], answer["text"]) or {}).values())

            best, worst = max(answers, key=worth), min(answers, key=worth)
            return (best, worst) if worth(best) > worth(worst) else None

        return self.run.rows(
            self.own(t, "pairs"),
            lambda: _pairs(prompts, responses, draw),
            f"{self.label} of M{t}",
        )


class PositiveOnly(Arm):
    label = "positive only"

    def improve(self, t: int) -> None:
        prompts = self.write_prompts(t)
        responses = self.answer(t, prompts)
        judgements = self.judge(t, prompts, responses)
        text_of = {row["id"]: row["prompt"] for row in prompts}
        scores: dict[str, list[float | None]] = {row["id"]: [] for row in responses}
        for row in judgements:
            scores[row["response_id"]].append(row["score"])
        full = [row for row in responses if mean_score(scores[row["id"]]) == self.rubric.high]
        examples = [Example(text_of[row["prompt_id"]], row["text"]) for row in full]
        self.models.sft(self.name(t + 1), self.model(t), examples, self.settings.dpo)


class MoreSft(Arm):
    label = "more SFT"

    def improve(self, t: int) -> None:
        """As many steps as fit into the time that the loop's iteration took."""
        step = self.run.seconds("M1") / self.run.counts("M1")["steps"]
        steps = max(1, round(iteration_seconds(self, t) / step))
        how = replace(self.settings.sft, epochs=1e6, max_steps=steps)
        self.models.sft(self.name(t + 1), self.model(t), self.seed_examples(), how)


class ReplayOnly(Arm):
    label = "replay only"

    def improve(self, t: int) -> None:
        steps = self.run.counts(f"loop/M{t + 1}")["steps"]
        how = replace(self.settings.dpo, epochs=1e6, max_steps=int(steps))
        self.models.sft(self.name(t + 1), self.model(t), self.examples(t), how)

    def examples(self, t: int) -> list[Example]:
        return self.judged(self.given.seed.eft)


class PracticeOnly(ReplayOnly):
    label = "practice only"

    def examples(self, t: int) -> list[Example]:
        return self.seed_examples() + self.practise(t)


ARMS: tuple[type[Arm], ...] = (
    *(Arm, RandomPairs, RandomChoices, OraclePairs),
    *(PositiveOnly, MoreSft, ReplayOnly, PracticeOnly),
)


def iteration_seconds(arm: Arm, t: int) -> float:
    """How long the loop took from M_t to M_t+1, evaluation apart."""
    start = "M1" if t == 1 else f"loop/M{t}"
    made = [name for name in arm.run.stages(start) if name in STAGES]
    made_seconds = sum(arm.run.seconds(f"{start}/{name}") for name in made)
    return made_seconds + arm.run.seconds(f"loop/M{t + 1}")


def _pairs(
    prompts: Rows, responses: Rows, draw: Callable[[Row, Rows], tuple[Row, Row] | None]
) -> tuple[Rows, dict[str, int]]:
    """One pair a prompt, out of its finished answers with different texts, as `draw` says."""
    pairs, counts = [], Counter(prompts=len(prompts), too_few=0, no_pair=0, pairs=0)
    for row in prompts:
        mine = (answer for answer in responses if answer["prompt_id"] == row["id"])
        answers = list({answer["text"]: answer for answer in mine if answer["finished"]}.values())
        drawn = draw(row, answers) if len(answers) > 1 else None
        counts["pairs" if drawn else "no_pair" if len(answers) > 1 else "too_few"] += 1
        if drawn:
            chosen, rejected = drawn
            pairs.append(
                {
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "chosen": chosen["text"],
                    "rejected": rejected["text"],
                    "chosen_score": None,
                    "rejected_score": None,
                    "chosen_id": chosen["id"],
                    "rejected_id": rejected["id"],
                }
            )
    return pairs, dict(counts)
