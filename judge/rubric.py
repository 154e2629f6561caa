"""Turns a request and an answer into the judge's prompt. Knows no model and reads no score."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).parent / "prompts"
# The scores that the built-in rubrics offer. (pairwise.txt and meta*.txt offer none.)
SCALES = {"additive": (0.0, 5.0), "additive_short": (0.0, 5.0), "multiple_choice": (1.0, 5.0)}


@dataclass(frozen=True)
class Rubric:
    """A judge's prompt, with places `{prompt}` and `{response}`, and the scores it may end in.

    pattern: the last line of a reply, with `{score}` for the number; None: `Score: {score}`, read
    with the tolerance of `parse_score`.
    """

    name: str
    template: str
    low: float = 0.0
    high: float = 5.0
    pattern: str | None = None

    def __post_init__(self) -> None:
        require_places(self.template, ("prompt", "response"), self.name)
        if self.pattern is not None and self.pattern.count("{score}") != 1:
            raise ValueError(f"{self.name}: expected {{score}} once in score: {self.pattern}")
        if not self.low < self.high:
            raise ValueError(
                f"{self.name}: expected a scale that rises, found {self.low} to {self.high}"
            )

    def render(self, prompt: str, response: str) -> str:
        """The judge's prompt for one answer."""
        return fill(self.template, prompt=prompt, response=response)

    @property
    def scores(self) -> list[int]:
        """The whole numbers of the scale."""
        return list(range(math.ceil(self.low), math.floor(self.high) + 1))

    @property
    def endings(self) -> list[str]:
        """For each of `scores` the end of a reply, up to and including the number."""
        before = (self.pattern or "Score: {score}").partition("{score}")[0]
        return [f"{before}{score}" for score in self.scores]


def load_rubric(name_or_path: str | Path) -> Rubric:
    """One of ours by its name (`SCALES`), or a text file of the user's.

    A reply must end in a line `Score: N`, from 0 to 5, unless the file begins with lines that say
    otherwise, one or both of these, and a line of three dashes:
    ```
    score: Rating: [[{score}]]
    scale: 1 to 10
    ---
    ```
    Raises ValueError if there is no such file, it lacks `{prompt}` or `{response}`, or these lines
    say something else.
    """
    name = str(name_or_path)
    if name in SCALES:
        return Rubric(name, read_template(PROMPTS / f"{name}.txt"), *SCALES[name])
    if not Path(name).is_file():
        known = ", ".join(SCALES)
        raise ValueError(f"{name}: no such rubric; give one of {known}, or the path of a text file")
    text = read_template(Path(name))
    if not text.startswith(("score:", "scale:")):
        return Rubric(name, text)
    head, dashes, template = text.partition("\n---\n")
    if not dashes:
        raise ValueError(f"{name}: expected a line --- between score:, scale: and the template")
    return Rubric(name, template, **_head(head, name))


def _head(head: str, name: str) -> dict[str, Any]:
    """What the lines above the dashes say: of the pattern and of the scale."""
    found: dict[str, Any] = {}
    for line, text in enumerate(head.split("\n"), start=1):
        key, _, value = text.partition(":")
        scale = re.fullmatch(r"(\d+(?:\.\d+)?) to (\d+(?:\.\d+)?)", value.strip())
        if key == "score":
            found["pattern"] = value.strip()
        elif key == "scale" and scale:
            found |= {"low": float(scale[1]), "high": float(scale[2])}
        else:
            raise ValueError(
                f"{name}:{line}: expected `score: …{{score}}…` or `scale: 1 to 10`, found {text!r}"
            )
    return found


def read_template(path: Path) -> str:
    """A template file's text without the newline that ends its last line, and without a BOM."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")
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
