"""Meta-Rewarding as steps of a run: the model judges its judgements, and learns to do that.

Knows the settings; what a meta-judge is asked and what becomes of it stands in `judge/meta.py`.
"""

from judge.compare import load_comparison
from judge.meta import judgement_pairs, meta_examples
from judge.rubric import Rubric
from loop.models import Example
from loop.rows import Rows
from loop.run import Run
from loop.settings import Meta
from sampling.respond import Complete


class MetaRewarding:
    """The meta-judge of a run. Raises ValueError for a template that cannot be used."""

    def __init__(self, run: Run, how: Meta, rubric: Rubric) -> None:
        self.run, self.how, self.rubric = run, how, rubric
        self.template = load_comparison(how.template)

    def pairs(
        self,
        t: int,
        name: str,
        complete: Complete,
        prompts: Rows,
        responses: Rows,
        judgements: Rows,
        *,
        seed: int,
    ) -> Rows:
        """The stage `name/judgement_pairs.jsonl`; no rows where Meta-Rewarding is off at M_t.

        complete: M_t, which is the meta-judge.
        """
        how = self.how
        if not how.prompts or t > how.iterations:
            return []
        return self.run.rows(
            f"{name}/judgement_pairs.jsonl",
            lambda: judgement_pairs(
                complete,
                self.rubric,
                self.template,
                prompts,
                responses,
                judgements,
                most=how.prompts,
                seed=seed,
                max_new_tokens=how.max_new_tokens,
            ),
            f"{name}: judging its judgements",
        )

    def examples(self, ranked: Rows, judgements: Rows) -> list[Example]:
        """What people's ranks teach a meta-judge, if that is on: its prompts and verdicts."""
        if not (self.how.prompts and self.how.practice):
            return []
        return meta_examples(self.rubric, self.template, ranked, judgements)
