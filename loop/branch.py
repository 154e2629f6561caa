"""`--run NEW --from OLD@M2`: begins a run with models and rows of another, which stays as it is.

```
  OLD   M1 · M1/eval… · M1/prompts … M1/pairs · M2 │ M2/eval… · M2/prompts · M2/responses · M3
  NEW   all that made M2, as it is                 │ what NEW's settings would make the same
```
Files are shared, not copied, where the disk can. Knows no rank, and not how anything is made, but
which settings each stage's rows come from.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop import files, identity
from loop.manifest import NAME, Manifest

# Beside model, seed, type and inputs. A stage that does not stand here is made anew.
_ANSWERS = ("prompts", "responses")
MADE_FROM = {
    "prompts": ("prompts",),
    "responses": _ANSWERS,
    "judgements": (*_ANSWERS, "judging"),
    "pairs": (*_ANSWERS, "judging", "pairs"),
    "judgement_pairs": (*_ANSWERS, "judging", "meta"),
    "practice_judgements": ("judging",),
    "practice": ("judging",),
    "own_scores": (*_ANSWERS, "judging"),
    "eval_drift": ("evaluation", "responses", "judging"),
    "eval_answers": ("evaluation", "responses"),
    "eval_judgements": ("evaluation", "judging"),
    "eval_compared": ("evaluation", "responses", "judging"),
    "eval": ("evaluation", "responses", "judging"),
}
CHANGES_NOTHING = ("iterations", "until_plateau", "sft", "dpo", "choice")  # … that is there already
MEASURES = "eval"  # stages that begin so measure a model; nothing is made from them


@dataclass(frozen=True)
class Origin:
    """A model of another run."""

    run: Path
    model: str

    @classmethod
    def parse(cls, text: str) -> Origin:
        """From `OLD@M2`. Raises ValueError for something else."""
        run, at, model = text.rpartition("@")
        if not (run and at and model.startswith("M")):
            raise ValueError(f"--from {text}: expected a run directory and a model in it, OLD@M2")
        return cls(Path(run), model)

    def describe(self, new: Path) -> dict[str, Any]:
        """What the new run's config.json says of it. Raises ValueError if it is not there, unless
        the new run has all that it needs.
        """
        where, begun = str(self.run.resolve()), _begun(new)
        if (
            begun
            and (begun["run"], begun["model"]) == (where, self.model)
            and (new / NAME).exists()
        ):
            return begun
        if self.run.resolve() == new.resolve():
            raise ValueError(f"{new}: a run cannot begin from itself; take another --run")
        if not (self.run / identity.CONFIG).is_file():
            raise ValueError(f"{self.run}: no run lies there; --from wants RUN@MODEL")
        stages = Manifest(self.run).stages
        if self.model not in stages:
            models = ", ".join(name for name in stages if "/" not in name) or "none"
            raise ValueError(f"{self.run}: has no finished {self.model}; finished are: {models}")
        return {"run": where, "model": self.model, "files": stages[self.model]["files"]}


def _begun(root: Path) -> dict[str, Any] | None:
    """The origin that a run has already, if any."""
    path = root / identity.CONFIG
    return identity.read(path).get("origin") if path.exists() else None


def take_over(root: Path) -> list[str]:
    """Fills a run that has an origin in its config.json, and no record yet; returns lines to be
    said.

    The record is written last: whoever is interrupted begins again. Raises ValueError for an origin
    that is damaged or no longer what it was.
    """
    begun = _begun(root)
    if begun is None or (root / NAME).exists():
        return []
    config = identity.read(root / identity.CONFIG)
    origin = Origin(Path(begun["run"]), begun["model"])
    if origin.describe(root)["files"] != begun["files"]:
        raise ValueError(f"{origin.run}: its {origin.model} is another by now; --run NEW")
    old = Manifest(origin.run)
    different = identity.changes(identity.read(origin.run / identity.CONFIG), config)
    kept = still_valid(list(old.stages), origin.model, {_section(line) for line in different})
    for path in kept:
        if faults := old.faults(path):
            raise ValueError(f"{faults[0]}; run the old run's command, which makes it again")
        for name in old.stages[path]["files"]:
            files.share(origin.run / path / name, root / path / name)
    Manifest(root).take({path: old.stages[path] for path in kept})
    said = f"begun from {origin.run}, {origin.model}: {len(kept)} finished stages taken over"
    return [said, *(f"  {line}" for line in different)]


def still_valid(order: list[str], model: str, changed: Collection[str]) -> list[str]:
    """The stages, out of those of a run in their order, that a run from `model` on can take over,
    if these sections of its settings (or other top-level keys) are others.
    """
    history, kept = order[: order.index(model) + 1], []
    models = {path.partition("/")[0] for path in history}  # with what was made by them later
    for path in order:
        name = path.partition("/")[2].partition(".")[0]
        made_it = path in history and not name.startswith(MEASURES)
        if made_it or (path.partition("/")[0] in models and _same(name, path, changed)):
            kept.append(path)
    return kept


def _same(name: str, path: str, changed: Collection[str]) -> bool:
    """Whether other settings make the same rows of a stage from the same model."""
    if name not in MADE_FROM or ".units/" in path:
        return False
    return all(key in CHANGES_NOTHING or key in _others(name) for key in changed)


def _others(name: str) -> set[str]:
    """The sections that a stage does not read."""
    return {section for sections in MADE_FROM.values() for section in sections} - {*MADE_FROM[name]}


def _section(line: str) -> str:
    """`judging.k: 3 → 5` is of `judging`."""
    return line.split(":")[0].split(".")[0]
