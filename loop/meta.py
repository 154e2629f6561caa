"""Meta-Rewarding as steps of a run: the model judges its judgements, and learns to do that.

Knows the settings; what a meta-judge is asked and what becomes of it stands in `judge/meta.py`.
"""

from functools import partial

from judge.compare import compare_in_parts, load_comparison
from judge.meta import disputed_answers, judgement_duels, judgement_pairs, meta_examples
from judge.rubric import Rubric
from loop.examples import Example
from loop.models import Models
from loop.rows import Rows
from loop.run import Run
from loop.settings import Settings


class MetaRewarding:
    """The meta-judge of a run. Raises ValueError for a template that cannot be used."""

    def __init__(self, run: Run, settings: Settings, models: Models, rubric: Rubric) -> None:
        self.run, self.how, self.models, self.rubric = run, settings.meta, models, rubric
        self.seed, self.unit = settings.seed, settings.machine.unit
        self.template = load_comparison(self.how.template)

    def pairs(self, t: int, name: str, prompts: Rows, responses: Rows, judgements: Rows) -> Rows:
        """The stage `name/judgement_pairs.jsonl`: of disputed answers the best judgement against
        the worst, by M_t in `name`; no rows where Meta-Rewarding is off at M_t.
        """
        how = self.how
        if not how.prompts or t > how.iterations:
            return []
        looked_at = prompts[: how.prompts]
        disputed = disputed_answers(looked_at, responses, judgements)
        return self.run.rows_in_units(
            f"{name}/judgement_pairs.jsonl",
            judgement_duels(self.rubric, disputed),
            partial(
                compare_in_parts,
                self.models.complete(self.run.root / name),
                seed=self.seed,
                temperature=0.0,
                top_p=1.0,
                max_new_tokens=how.max_new_tokens,
                template=self.template,
            ),
            f"{name}: judging its judgements",
            unit=self.unit,
            finish=lambda verdicts: judgement_pairs(
                self.rubric, disputed, verdicts, len(looked_at)
            ),
        )

    def examples(self, ranked: Rows, judgements: Rows) -> list[Example]:
        """What people's ranks teach a meta-judge, if that is on: its prompts and verdicts."""
        if not (self.how.prompts and self.how.practice):
            return []
        learnt = meta_examples(self.rubric, self.template, ranked, judgements)
        return [Example(*asked_and_said) for asked_and_said in learnt]
