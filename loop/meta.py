"""Meta-Rewarding as steps of a run: the model judges its judgements, and learns to do that.

Knows the settings; what a meta-judge is asked and what becomes of it stands in `judge/meta.py`.
"""

from judge.compare import load_comparison
from judge.meta import judgement_pairs, meta_examples
from judge.rubric import Rubric
from loop.models import Example, Models
from loop.rows import Rows
from loop.run import Run
from loop.settings import Settings


class MetaRewarding:
    """The meta-judge of a run. Raises ValueError for a template that cannot be used."""

    def __init__(self, run: Run, settings: Settings, models: Models, rubric: Rubric) -> None:
        self.run, self.how, self.models, self.rubric = run, settings.meta, models, rubric
        self.seed = settings.seed
        self.template = load_comparison(self.how.template)

    def pairs(self, t: int, name: str, prompts: Rows, responses: Rows, judgements: Rows) -> Rows:
        """The stage `name/judgement_pairs.jsonl`: of disputed answers the best judgement against
        the worst, by M_t in `name`; no rows where Meta-Rewarding is off at M_t.
        """
        how = self.how
        if not how.prompts or t > how.iterations:
            return []
        return self.run.rows(
            f"{name}/judgement_pairs.jsonl",
            lambda: judgement_pairs(
                self.models.complete(self.run.root / name),
                self.rubric,
                self.template,
                prompts,
                responses,
                judgements,
                most=how.prompts,
                seed=self.seed,
                max_new_tokens=how.max_new_tokens,
            ),
            f"{name}: judging its judgements",
        )

    def examples(self, ranked: Rows, judgements: Rows) -> list[Example]:
        """What people's ranks teach a meta-judge, if that is on: its prompts and verdicts."""
        if not (self.how.prompts and self.how.practice):
            return []
        return meta_examples(self.rubric, self.template, ranked, judgements)
