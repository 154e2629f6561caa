"""Decides whether the run in a directory is the run that is asked for: same settings, same inputs.

Knows no stage and no rank.
"""

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loop import files

CONFIG = "config.json"
_PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors")


def take_up(
    root: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    may_change: Collection[str],
    origin: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes config.json into an empty `root`, or checks the one that is there; returns lines to be
    said. `origin`: what `loop.branch` wants to know again of the run that this one begins from.

    Raises ValueError if `root` holds something that is no run, or a run in which something was made
    with other settings or inputs, the dotted keys `may_change` aside.
    """
    path = root / CONFIG
    asked = describe(settings, inputs) | ({"origin": dict(origin)} if origin else {})
    refuse_strangers(root)
    if not path.exists():
        files.write(path, files.json_bytes(asked))
        return []
    there = read(path)
    different = changes(there, asked, may_change)
    if origin and there.get("origin") != asked["origin"]:
        different.append(f"--from: {_named(there.get('origin'))} → {_named(origin)}")
    if different and _made(root):  # else it may be changed
        raise ValueError(
            f"{root}: this run was started with other settings or inputs:\n"
            + "".join(f"  {line}\n" for line in different)
            + f"Put them back, or start another run: --run NEW{_branching(root)}"
        )
    if different:
        for begun in root.glob("*.unfinished"):
            files.remove(begun)
        files.write(path, files.json_bytes(asked))
        return []
    if there["settings"] != asked["settings"]:
        files.write(path, files.json_bytes(there | {"settings": asked["settings"]}))
    return [
        f"{package} was {old} when this run began and is {asked['versions'].get(package)} now: "
        "from here on the last digits may differ"
        for package, old in there["versions"].items()
        if old != asked["versions"].get(package)
    ]


def refuse_strangers(root: Path) -> None:
    """Raises ValueError where `root` is a file, or holds something and is no run."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root}: expected a directory, found a file; --run NEW")
    if root.exists() and not (root / CONFIG).exists() and (strangers := _visible(root)):
        raise ValueError(
            f"{root}: holds {strangers[0]!r} but no {CONFIG}, so it is no run; "
            "take an empty or a new directory: --run NEW"
        )


def _named(origin: Mapping[str, Any] | None) -> str:
    return f"{origin['run']}@{origin['model']}" if origin else "(not there)"


def _branching(root: Path) -> str:
    """How to keep the models that are there, if there are any."""
    made = [int(path.name[1:]) for path in root.glob("M*") if path.name[1:].isdecimal()]
    last = f"{root}@M{max(made)}" if made else ""
    return f"; or go on from one of its models: --run NEW --from {last}" if made else ""


def _made(root: Path) -> bool:
    """Whether a run made anything. A training that left nothing to go on from did not: it would
    begin anew anyway.
    """
    return any(
        not name.endswith(".unfinished") or any((root / name).glob(files.TO_GO_ON))
        for name in _visible(root)
        if name != CONFIG
    )


def _visible(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))


def describe(settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What config.json holds: the resolved settings, each input's hash, the versions in use.

    Raises ValueError for an input that is not there.
    """
    return {
        "settings": json.loads(
            files.json_bytes(settings)
        ),  # as it will be read back: lists, not tuples
        "inputs": {
            name: {"path": str(path), "sha256": fingerprint(path)} for name, path in inputs.items()
        },
        "versions": versions(),
    }


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files in a directory (hidden ones
    aside).
    """
    if path.is_file():
        return str(files.digest(path)["sha256"])
    if not path.is_dir():
        raise ValueError(
            f"{path}: no such file or directory; mend the flag or setting that names it"
        )
    visible = [name for name in files.names_in(path) if not f"/{name}".count("/.")]
    return hashlib.sha256(files.json_bytes(files.digests(path, visible))).hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that do the arithmetic; None: not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str] = ()
) -> list[str]:
    """One line for each setting or input that differs: `dpo.beta: 0.1 → 0.2`."""
    before, after = (_flat(config["settings"]) | _hashes(config["inputs"]) for config in (old, new))
    return [
        f"{key}: {_shown(before, key)} → {_shown(after, key)}"
        for key in [*before, *(key for key in after if key not in before)]
        if key not in may_change and _shown(before, key) != _shown(after, key)
    ]


def read(path: Path) -> dict[str, Any]:
    """What a config.json holds. Raises ValueError if it is damaged."""
    try:
        config: dict[str, Any] = files.read_json(path.read_bytes())
        _flat(config["settings"]), _hashes(config["inputs"]), config["versions"].items()
        return config
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{path}: damaged (expected an object with settings, inputs and versions); "
            "put back a good copy, or start another run: --run NEW"
        ) from None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _hashes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """An input is what it holds: a directory that was moved is the same input."""
    return {f"contents of {name}": entry["sha256"][:12] for name, entry in inputs.items()}


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(not there)"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
