"""Reads what a run left behind, for those who come after it. Starts nothing and changes nothing."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loop.files import read_json
from loop.identity import CONFIG
from loop.models import BASELINE
from loop.options import build
from loop.rows import Row
from loop.settings import Settings
from seed.read import read_held_out
from seed.rows import STRING, Kind, read_rows

ANSWERS = "eval_answers.jsonl"
_FIELDS = {
    **dict.fromkeys(("id", "prompt_id", "mode", "text"), STRING),
    "k": Kind("a whole number", lambda value: type(value) is int),
}
_POINTS = Kind(
    "an object of numbers, or null",
    lambda value: (
        value is None
        or (isinstance(value, dict) and all(isinstance(n, int | float) for n in value.values()))
    ),
)


class FinishedRun:
    """A run directory. Raises ValueError for one that is none, or that lacks what is asked for."""

    def __init__(self, root: Path, seed_data: Path | None = None) -> None:
        """seed_data: where the seed lies now, if not where it lay when the run began."""
        self.root = root
        config = _config(root / CONFIG)
        self.settings: Settings = build([(str(root / CONFIG), _as_toml(config["settings"]))])
        self.seed_data = seed_data or Path(config["inputs"]["seed"]["path"])

    def models(self) -> list[str]:
        """The models that were evaluated, the baseline and M1 first."""
        found = [path.parent.name for path in self.root.glob(f"*/{ANSWERS}")]
        known = [name for name in found if name == BASELINE or re.fullmatch(r"M\d+", name)]
        return sorted(known, key=lambda name: (name != BASELINE, len(name), name))

    def answers(self, name: str) -> list[Row]:
        """A model's answers to the held-out prompts. Raises ValueError naming a damaged file."""
        path = self.root / name / ANSWERS
        if not path.is_file():
            known = ", ".join(self.models()) or "none"
            raise ValueError(f"{path}: no such file; evaluated in this run: {known}")
        return read_rows(path, _FIELDS, {"points": _POINTS})

    def prompts(self) -> list[Row]:
        """The held-out prompts that were answered."""
        path = self.seed_data / "held_out.jsonl"
        if not path.is_file():
            raise ValueError(f"{path}: gone since the run began; say where: --seed-data DIR")
        return read_held_out(path)[: self.settings.evaluation.instructions]

    def texts(self, name: str, mode: str) -> dict[str, str]:
        """A model's first answer to each held-out prompt, by the prompt's id.

        Raises ValueError if the prompts are not those that were answered.
        """
        rows = [row for row in self.answers(name) if row["mode"] == mode and row["k"] == 0]
        texts = {row["prompt_id"]: row["text"] for row in rows}
        if missing := [row["id"] for row in self.prompts() if row["id"] not in texts]:
            raise ValueError(
                f"{self.seed_data / 'held_out.jsonl'}: {name} never answered {missing[0]!r}; "
                "give the seed data of the run: --seed-data DIR"
            )
        return texts


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = read_json(path.read_bytes())
        str(config["inputs"]["seed"]["path"]), dict(config["settings"])
        return config
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a run") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not the config.json of a run; give a run directory") from None


def _as_toml(tree: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: there it is called none."""
    return {
        key: _as_toml(value) if isinstance(value, dict) else "none" if value is None else value
        for key, value in tree.items()
    }
