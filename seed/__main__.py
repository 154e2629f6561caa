"""Makes the seed data of a run out of conversations and ranked answers.

python -m seed SOURCE … --out DIR     SOURCE: an Open Assistant dump, or rows (see seed/sources.py)

Then: python train.py --preset paper --model DIR --prompt-model CHAT_DIR --seed-data DIR
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from loop.files import json_bytes, jsonl_bytes, write
from loop.terminal import suit_any_terminal
from seed.build import PRESETS, Sizes, split
from seed.items import Item, without_repeats
from seed.report import build_report, render_report
from seed.sources import Source, read_source, stem

SIZES = {
    "ift": "best answers to learn from",
    "ranked": "ranked answers to measure judging on",
    "held_out": "instructions to measure following on",
    "eft_ranked": "ranked answers to make judgements of; default: all that are left",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    suit_any_terminal()
    given = _parser().parse_args(arguments)
    try:
        print(_make(given), end="")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; remove what was written, and run it again", file=sys.stderr)
        return 130
    return 0


def _make(given: argparse.Namespace) -> str:
    """Reads, splits, writes; returns the report as a table."""
    out: Path = given.out
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: expected no directory, or an empty one; choose another --out")
    asked = {name: getattr(given, name) for name in SIZES if getattr(given, name) is not None}
    sizes: Sizes = replace(PRESETS[given.preset], **asked)
    names = _names(given.sources)
    sources = [read_source(path, given.language, name) for path, name in zip(given.sources, names)]
    items = without_repeats(_joined(given.sources, sources))
    files = split(items, sizes, given.seed)
    how = {"language": given.language, "seed": given.seed, "sizes": asdict(sizes)}
    report = build_report(sources, items, files) | {"settings": how}
    for name, rows in files.items():
        if rows:  # of eft_ranked alone there may be none
            write(out / f"{name}.jsonl", jsonl_bytes(rows))
    write(out / "report.json", json_bytes(report))
    return render_report(report)


def _names(paths: Sequence[Path]) -> list[str]:
    """What the rows without ids of each file are called after: a/x.jsonl x, b/x.jsonl x.2, …"""
    stems = [stem(path) for path in paths]
    before = [stems[:place].count(name) for place, name in enumerate(stems)]
    return [f"{name}.{count + 1}" if count else name for name, count in zip(stems, before)]


def _joined(paths: Sequence[Path], sources: Sequence[Source]) -> list[Item]:
    """The items of all sources. Raises ValueError for an id that two of them have."""
    home: dict[str, Path] = {}
    for path, source in zip(paths, sources):
        for item in source.items:
            if item.id in home:
                raise ValueError(
                    f"{path}: expected ids that {home[item.id]} has not, found {item.id!r}; "
                    "give one of the rows another id"
                )
        home |= {item.id: path for item in source.items}
    return [item for source in sources for item in source.items]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m seed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sources", metavar="SOURCE", type=Path, nargs="+", help="JSON Lines, plain or gzipped")
    add("--out", type=Path, required=True, metavar="DIR", help="a new directory")
    add("--preset", choices=PRESETS, default="paper-v3", help="how much of each (%(default)s)")
    for name, text in SIZES.items():
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    add("--language", default="en", help="of Open Assistant's messages (%(default)s)")
    add("--seed", type=int, default=0, help="of the drawing (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
