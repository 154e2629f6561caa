"""Draws a report as one plain HTML page: curves, the table, counts, seconds. No script, no other
file, nothing loaded from anywhere. Knows no file and no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from loop.marks import figure, histograms, prompt_map, text
from loop.report import (
    AXES,
    PARTS,
    SIGNS,
    Measure,
    Tree,
    bounds,
    cell,
    headline,
    intervals,
    shown,
    values,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1a; --faint: #74746f; --line: #dddcd6;
        --paper: #fcfcfa; --instruction_following: #0b6e99; --judging: #b4501e;
        --mark-0: #0b6e99; --mark-1: #b4501e; --mark-2: #74746f; --mark-3: #2a8c4a;
        --mark-4: #8a4fb0; --mark-5: #b8860b; --mark-6: #c0396b; --mark-7: #3a5fcd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e0; --faint: #96948d; --line: #3a3936; --paper: #191918;
          --instruction_following: #5cb8e0; --judging: #e8905c;
          --mark-0: #5cb8e0; --mark-1: #e8905c; --mark-2: #96948d; --mark-3: #6cc98a;
          --mark-4: #c093e0; --mark-5: #e0b84a; --mark-6: #ee82a8; --mark-7: #8fa5f0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .5rem; }
p { color: var(--faint); margin: .2rem 0 0; }
.curves { display: flex; flex-wrap: wrap; gap: 2rem; }
figure { flex: 1 1 20rem; margin: 1.5rem 0 0; }
figcaption { font-weight: 600; } figcaption span { font-weight: 400; color: var(--faint); }
svg { width: 100%; height: auto; } svg text { font-size: 13px; fill: var(--faint); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; white-space: nowrap; font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; } thead th, .axis th { font-weight: 600; }
figcaption span + span { margin-left: .8rem; } li { margin: .3rem 0; }
td small { display: block; color: var(--faint); }
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 240, 52, 52, 26, 30  # of a figure, in pixels


def render_page(report: Tree, title: str) -> str:
    """The page of a report from `build_report`."""
    figures = [_figure(report, measure) for axis in AXES if (measure := headline(report, axis))]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
        "<p>One column a model. Under each mean, its interval.</p>\n"
        f'<div class="curves">\n{"".join(figures)}</div>\n'
        f"<h2>Health</h2>\n{_health(report)}"
        f"<h2>Measures</h2>\n{_measures(report, shown(report))}"
        f"<h2>Signs</h2>\n{_measures(report, shown(report, SIGNS))}"
        f'<div class="curves">\n{_histograms(report)}</div>\n'
        f"{_canaries(report)}"
        f"{_prompts(report)}"
        f"<h2>Counts</h2>\n{_numbers(_part(report, 'counts'), ',.0f')}"
        f"<h2>Seconds a stage</h2>\n{_numbers(_part(report, 'seconds'), ',.1f')}"
        "</body>\n</html>\n"
    )


def _health(report: Tree) -> str:
    """A line each finding of the health rules."""
    if not report["health"]:
        return "<p>No rule of docs/evaluation.md found anything.</p>\n"
    lines = (
        f"<li><b>{escape(row['model'])}: {escape(row['rule'])}</b> ({row['value']:.3g}, from "
        f"{row['threshold']:g} on; {'ends a run until-plateau' if row['stops'] else 'a warning'}): "
        f"{escape(row['meaning'])}.</li>\n"
        for row in report["health"]
    )
    return f"<ul>\n{''.join(lines)}</ul>\n"


def _measures(report: Tree, measures: Iterable[Measure]) -> str:
    rows: list[str] = []
    axis = ""
    for measure in measures:
        if measure.axis != axis:
            axis = measure.axis
            heading = (AXES | PARTS)[axis]
            rows.append(_row(heading, ("" for _ in report["models"]), kind="axis"))
        cells = map(_cell, values(report, measure), intervals(report, measure))
        rows.append(_row(measure.label, cells))
    return _table(report["models"], rows)


def _histograms(report: Tree) -> str:
    figures = []
    for part in ("scores", "own_scores"):
        models = report["models"].items()
        counts = {name: model[part].get("histogram") for name, model in models}
        if known := {name: found for name, found in counts.items() if found}:
            figures.append(histograms(PARTS[part], known))
    return "".join(figures)


def _prompts(report: Tree) -> str:
    """How near each set of prompts lies to the seed's, and the map of all."""
    found = report["prompts"]
    if not found or not found["nearest"]:
        return ""
    rows = [
        _row(name, (f"{value:.2f}" for value in quantiles.values()))
        for name, quantiles in found["nearest"].items()
    ]
    heads = [f"{q} %" for q in next(iter(found["nearest"].values()))]
    return (
        f"<h2>Prompts</h2>\n<p>Likeness (TF-IDF cosine) of a prompt to its nearest among "
        f"{escape(found['near'])}: quantiles over each set.</p>\n{_table(heads, rows)}"
        f'<div class="curves">\n{prompt_map("Where prompts lie", found["map"])}</div>\n'
    )


def _canaries(report: Tree) -> str:
    """How each model scores answers that deserve nothing, under its mean score of real ones."""
    scores = {
        name: {"what people ranked": model["scores"]["mean_score"]}
        | {canary.replace("_", " "): score for canary, score in found.items()}
        for name, model in report["models"].items()
        if (found := model["judging"].get("canaries"))
    }
    if not scores:
        return ""
    return (
        "<h2>Canaries</h2>\n<p>Mean scores of answers that deserve nothing, and of answers that "
        f"people ranked.</p>\n{_numbers(scores, '.2f')}"
    )


def _part(report: Tree, part: str) -> dict[str, Mapping[str, Any]]:
    return {name: model[part] for name, model in report["models"].items()}


def _numbers(parts: Mapping[str, Mapping[str, Any]], form: str) -> str:
    """A table of plain numbers of models, a row for each name that any of them has."""
    flat = {name: _flat(part) for name, part in parts.items()}
    names = list(dict.fromkeys(name for found in flat.values() for name in found))
    rows = [
        _row(name, (_number(found.get(name), form) for found in flat.values())) for name in names
    ]
    return _table(flat, rows)


def _flat(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's own counts stand under its file's name: `pairs.jsonl: equal_scores`."""
    flat: dict[str, Any] = {}
    for name, value in numbers.items():
        inside = value if isinstance(value, Mapping) else None
        flat |= {f"{name}: {key}": n for key, n in inside.items()} if inside else {name: value}
    return flat


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    number, _, rest = cell(value, interval).partition(" ")
    return number + (f"<small>{rest}</small>" if rest else "")


def _row(label: str, cells: Iterable[str], kind: str = "") -> str:
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    return (
        f"{opening}<th>{escape(label)}</th>{''.join(f'<td>{text}</td>' for text in cells)}</tr>\n"
    )


def _table(columns: Iterable[str], rows: Iterable[str]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
    return (
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{"".join(rows)}'
        "</tbody></table></div>\n"
    )


def _figure(report: Tree, measure: Measure) -> str:
    """A curve over the models, in the band of its intervals.

    ```
     .57 ┤        ░░●    value of the last model
         │   ░●░░░
     .37 ┤●░░
         └┴────┴────┴
          M1   M2   M3
    ```
    """
    low, high = bounds(report, measure)
    names = list(report["models"])
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(names) - 1)

    def x(index: int) -> float:
        return round(_LEFT + index * step, 1)

    def y(value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return round(_TOP + height * (high - value) / (high - low), 1)

    points = [
        (x(index), value, interval)
        for index, (value, interval) in enumerate(
            zip(values(report, measure), intervals(report, measure))
        )
        if value is not None
    ]
    lows = [f"{at},{y(interval[0])}" for at, _, interval in points if interval]
    highs = [f"{at},{y(interval[1])}" for at, _, interval in points if interval]
    line = " ".join(f"{at},{y(value)}" for at, value, _ in points)
    color = f"var(--{measure.axis})"
    marks = [
        *(_grid(value, y(value)) for value in (low, (low + high) / 2, high)),
        f'<polygon points="{" ".join(lows + highs[::-1])}" fill="{color}" opacity=".16"/>\n',
        f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>\n',
        *(_point(at, y(value), value, color) for at, value, _ in points),
        *(text(x(index), _HEIGHT - 8, name, "middle") for index, name in enumerate(names)),
    ]
    return figure(AXES[measure.axis], measure.label, "".join(marks))


def _grid(value: float, y: float) -> str:
    line = f'<path d="M{_LEFT - 12} {y}H{_WIDTH - 20}" stroke="var(--line)"/>\n'
    return line + text(_LEFT - 16, y + 4, f"{value:.2f}", "end")


def _point(x: float, y: float, value: float, color: str) -> str:
    dot = f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>\n'
    return dot + text(x, y - 10, f"{value:.3f}", "middle")
