"""Figures of a report beside its curves: histograms of scores, and the map of prompts. Inline SVG;
knows nothing but numbers and names.
"""

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _EDGE = 420, 240, 26  # of a figure, in pixels
_ROOM = 8  # between models
COLOURS = 8  # --mark-0 … in the page's style; more sets than these begin again


def histograms(title: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """For each model its scores as bars side by side, each bar a share of the model's scores.

    ```
           ▃                  █
      ▁  ▂ █ ▅          ▁ ▂ █ █
      1  2 3 4  5       1 2 3 4 5
          M1               M2
    ```
    """
    low = min(int(score) for found in counts.values() for score in found)
    high = max(int(score) for found in counts.values() for score in found)
    step = (_WIDTH - _ROOM) / len(counts)
    bar = (step - _ROOM) / (high - low + 1)
    marks = []
    for place, (name, found) in enumerate(counts.items()):
        left, total = _ROOM + place * step, sum(found.values())
        for score in range(low, high + 1):
            share = found.get(str(score), 0) / total
            marks.append(_bar(left + (score - low) * bar, bar, share, score))
        marks.append(text(left + (step - _ROOM) / 2, _HEIGHT - 4, name, "middle"))
    return figure(title, "share of each score", "".join(marks))


def _bar(left: float, width: float, share: float, score: int) -> str:
    floor = _HEIGHT - 2 * _EDGE
    height, middle = share * (floor - _EDGE), left + width / 2
    body = (
        f'<rect x="{left + 1:.1f}" y="{floor - height:.1f}" width="{width - 2:.1f}" '
        f'height="{height:.1f}" fill="var(--judging)"/>\n'
    )
    said = text(middle, floor - height - 4, f"{share:.0%}", "middle") if share >= 0.005 else ""
    return body + said + text(middle, floor + 14, str(score), "middle")


def prompt_map(title: str, sets: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Points in the plane, a colour each set, the later sets above the earlier ones."""
    points = [point for found in sets.values() for point in found]
    lows, highs = [min(axis) for axis in zip(*points)], [max(axis) for axis in zip(*points)]
    spans = [(high - low) or 1.0 for low, high in zip(lows, highs)]
    marks, legend = [], []
    for place, (name, found) in enumerate(sets.items()):
        colour = f"var(--mark-{place % COLOURS})"
        legend.append(f'<span style="color: {colour}">● {escape(name)}</span>')
        for x, y in found:
            across = _EDGE + (x - lows[0]) / spans[0] * (_WIDTH - 2 * _EDGE)
            down = _HEIGHT - _EDGE - (y - lows[1]) / spans[1] * (_HEIGHT - 2 * _EDGE)
            marks.append(
                f'<circle class="prompt" cx="{across:.1f}" cy="{down:.1f}" r="2.5" '
                f'fill="{colour}" opacity=".55"/>\n'
            )
    return figure(title, "two principal components", "".join(marks), " ".join(legend))


def figure(title: str, words: str, marks: str, legend: str = "") -> str:
    """Marks in a frame of one size, under a title; `legend` is markup."""
    more = f"<br/>{legend}" if legend else ""
    return (
        f"<figure>\n<figcaption>{escape(title)} <span>{escape(words)}</span>{more}</figcaption>\n"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}: '
        f'{escape(words)}">\n{marks}</svg>\n</figure>\n'
    )


def text(x: float, y: float, words: str, anchor: str) -> str:
    """Words in a figure."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>\n'
