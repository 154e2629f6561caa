"""The ablations: the loop with one choice made otherwise. All but two start from the same M1.

`own` names what M1 makes otherwise than in the loop; what it makes alike is shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controls.arms import Arm
from controls.shared import Shared
from judge import Rubric
from llama.parallel import Group
from loop.choice import Pairs
from loop.examples import Example
from loop.models import Models
from loop.rows import Rows, as_items
from loop.run import Run
from loop.settings import Settings
from seed.start import Start

CANDIDATES = ("responses.jsonl", "judgements.jsonl", "pairs.jsonl")
JUDGED = ("judgements.jsonl", "pairs.jsonl")
PRACTISED = ("practice_judgements.jsonl", "practice.jsonl")
# one of five kinds, said at once: the multiple choice of a small judge
CHOICE = "Choose: 1 wrong, 2 poor, 3 half, 4 nearly, 5 right.\nTask: {prompt}\nAnswer: {response}"


class OwnM1(Arm):
    """An arm whose M1 is its own."""

    def name(self, t: int) -> str:
        return f"{self.label}/M{t}".replace(" ", "-")


class OwnDpo(Arm):
    """An arm that trains in its own way."""

    def __init__(self, run: Run, settings: Settings, given: Start, models: Models) -> None:
        super().__init__(run, settings, given, models)
        self.choice.dpo = self.dpo  # type: ignore[method-assign]

    def dpo(self, name: str, start: Path, pairs: Pairs, replay: Sequence[Example]) -> Path:
        """As `loop.choice.Choice.dpo`, which would take the last checkpoint."""
        return self.models.dpo(name, start, pairs, replay, self.settings.dpo)


class NoEft(OwnM1, OwnDpo):
    """Nobody ever shows the model a judgement; it judges as the base model taught it."""

    def seed_examples(self, t: int = 1) -> list[Example]:
        return super().seed_examples(0)

    def practise(self, t: int) -> list[Example]:
        return []

    def dpo(self, name: str, start: Path, pairs: Pairs, replay: Sequence[Example]) -> Path:
        """Without pairs there is nothing to learn, and the next model is the one before."""
        if len(pairs) >= self.settings.pairs.minimum:
            return super().dpo(name, start, pairs, replay)
        return self.run.copy(name, start, {}, f"{name}: no pairs, as before")


class MultipleChoice(OwnM1):
    """The judge names one of five kinds of answer, without going through the points before."""

    def __init__(self, run: Run, settings: Settings, given: Start, models: Models) -> None:
        super().__init__(run, settings, given, models)
        self.rubric = self.evaluation.rubric = Rubric("multiple choice", CHOICE, low=1.0)

    def judged(self, rows: Rows) -> list[Example]:
        render = self.rubric.render
        return [
            Example(render(row["prompt"], row["response"]), f"Score: {max(1, int(row['score']))}")
            for row in rows
        ]


class ReferenceM1(OwnDpo):
    """DPO always against M1, so that M3 is held to what M1 would say."""

    def dpo(self, name: str, start: Path, pairs: Pairs, replay: Sequence[Example]) -> Path:
        how = self.settings.dpo
        return self.models.dpo(name, start, pairs, replay, how, reference=self.model(1))


class FrozenJudge(Arm):
    """M1 judges in all iterations, as a reward model that does not learn along."""

    def judge(self, t: int, prompts: Rows, responses: Rows) -> Rows:
        return self.run.rows_in_units(
            f"{self.name(t)}/judgements.jsonl",
            as_items(prompts, responses),
            lambda parts: self.ask_judge(1, parts, self.settings.judging.k),
            f"{self.name(t)}: judged by M1",
            unit=self.settings.machine.unit,
        )


@dataclass(frozen=True)
class Ablation:
    """What is different, and what of M1's making that touches."""

    label: str
    change: dict[str, dict[str, Any]]  # section → setting → value
    own: tuple[str, ...] = ()
    kind: type[Arm] = Arm

    def begin(self, run: Run, settings: Settings, given: Start, group: Group) -> Arm:
        """The loop with the change; it is evaluated as the loop is."""
        place = self.label.replace(" ", "-")
        shared = Shared(run, place, self.own)
        changed = replace(
            settings,
            **{part: replace(getattr(settings, part), **how) for part, how in self.change.items()},
        )
        kind: type[Arm] = type(self.kind.__name__, (self.kind,), {"label": self.label})
        arm = kind(shared, changed, given, Models(shared, changed, group))
        arm.evaluation.settings = settings
        return arm


ABLATIONS = (
    Ablation("multiple choice", {}, kind=MultipleChoice),
    Ablation("no EFT", {}, kind=NoEft),
    Ablation("no practice", {"judging": {"practice": 0}}),
    Ablation("K=1", {"judging": {"k": 1}}, JUDGED),
    Ablation("expected score K=1", {"judging": {"k": 1, "expected": True}}, JUDGED + PRACTISED),
    Ablation("N=2", {"responses": {"n": 2}}, CANDIDATES),
    Ablation("N=8", {"responses": {"n": 8}}, CANDIDATES),
    Ablation("two pairs a prompt", {"pairs": {"per_prompt": 2}}, ("pairs.jsonl",)),
    Ablation("length control", {"pairs": {"shorter_within": 0.2}}, ("pairs.jsonl",)),
    Ablation("own prompts", {"prompts": {"writer": "current"}}, ("prompts.jsonl", *CANDIDATES)),
    Ablation("reference M1", {}, kind=ReferenceM1),
    Ablation("frozen judge", {}, kind=FrozenJudge),
    Ablation(
        "checkpoint by judge", {"choice": {"by": "judge", "every": 10, "prompts": 200}}
    ),
    Ablation(
        "Meta-Rewarding",
        {
            "meta": {
                "prompts": 400, "template": "meta_short", "practice": True, "max_new_tokens": 16,
            }
        },
        ("judgement_pairs.jsonl",),
    ),
)  # fmt: skip
