"""Turns a request and an answer into the judge's prompt. Knows no model and reads no score."""

import re
from dataclasses import dataclass
from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts"
# The scores that the built-in rubrics offer. (pairwise.txt offers none: it is compare.py's.)
SCALES = {"additive": (0.0, 5.0), "additive_short": (0.0, 5.0), "multiple_choice": (1.0, 5.0)}


@dataclass(frozen=True)
class Rubric:
    """A judge's prompt, with places `{prompt}` and `{response}`, and the scores it may end in."""

    name: str
    template: str
    low: float = 0.0
    high: float = 5.0

    def __post_init__(self) -> None:
        require_places(self.template, ("prompt", "response"), self.name)

    def render(self, prompt: str, response: str) -> str:
        """The judge's prompt for one answer."""
        return fill(self.template, prompt=prompt, response=response)


def load_rubric(name_or_path: str | Path) -> Rubric:
    """One of ours by its name (`SCALES`), or a text file of the user's that asks for 0 to 5 points.

    The reply to any rubric must end in a line `Score: N`: that is what `parse_score` reads.
    Raises ValueError if there is no such file, or it lacks `{prompt}` or `{response}`.
    """
    name = str(name_or_path)
    if name in SCALES:
        return Rubric(name, read_template(PROMPTS / f"{name}.txt"), *SCALES[name])
    if not Path(name).is_file():
        known = ", ".join(SCALES)
        raise ValueError(f"{name}: no such rubric; give one of {known}, or the path of a text file")
    return Rubric(name, read_template(Path(name)))


def read_template(path: Path) -> str:
    """A template file's text without the newline that ends its last line."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a text file") from error


def require_places(template: str, places: tuple[str, ...], name: str) -> None:
    """Raises ValueError naming the template and the first of its places that is missing."""
    for place in places:
        if f"{{{place}}}" not in template:
            raise ValueError(f"{name}: the template lacks {{{place}}}; write it where it belongs")


def fill(template: str, **values: str) -> str:
    """Puts the values in their places, all in one pass.

    One pass, because a response may say `{prompt}` itself; and no `str.format`, because braces
    are ordinary characters both in the texts and in a user's template.
    """
    places = "|".join(values)
    return re.sub(rf"\{{({places})\}}", lambda place: values[place[1]], template)
