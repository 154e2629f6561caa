"""Builds the settings: preset < TOML file < flags. Knows the tree of settings only by its fields.

```
preset (loop/presets/NAME.toml)   every key has a value: here, or the field's default
  < --config FILE.toml            the same keys
  < --run DIR, --seed S, …        the top-level keys, as flags, and two from the sections
  < --set SECTION.KEY=VALUE       any key, as a flag
```
Four flags are no settings, but say what to do with them, or what to show: --status, --from,
--profile, --tensorboard.
"""

import argparse
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from dpo.telemetry import NOTHING, PROFILE, TENSORBOARD, Telemetry
from loop.branch import Origin
from loop.replica import SAMPLE_TP
from loop.settings import UNTIL_PLATEAU, Settings

PLATEAU = "until-plateau"
PRESETS = Path(__file__).parent / "presets"
IN_SECTIONS = {"prompt_model": ("prompts", "writer"), "sample_tp": ("machine", "sample_tp")}
Tree = dict[str, Any]
Sources = dict[str, str]  # dotted key → where its value was given


@dataclass(frozen=True)
class Command:
    """What a command line asks for."""

    settings: Settings
    status: bool = False  # tell where the run stands, and start nothing
    origin: Origin | None = None  # the model of another run that this one goes on from
    telemetry: Telemetry = NOTHING  # what to show of each training


def parse_arguments(argv: Sequence[str]) -> Settings:
    """The settings that a command line asks for, where these are all that it may ask for.

    Raises ValueError as `parse_command`.
    """
    command = parse_command(argv)
    if command != Command(command.settings):
        raise ValueError(
            "--status, --from, --profile and --tensorboard are flags of train.py alone"
        )
    return command.settings


def parse_command(argv: Sequence[str]) -> Command:
    """What a command line asks for.

    Raises ValueError for an unknown flag, preset or key and for a value of the wrong type, naming
    the place, the key, and the nearest key that exists; and for an empty flag, which would else
    mean what is embedded. `--help` prints and leaves.
    """
    parser = _parser()
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [name for action in parser._actions for name in action.option_strings]
        raise ValueError(f"unknown flag {unknown[0]}{_nearest(unknown[0].split('=')[0], names)}")
    given = vars(flags)
    for flag in (flag for flag, value in given.items() if value == ""):
        raise ValueError(
            f"--{flag.replace('_', '-')} is empty: give it a value (a variable that is not set?), "
            "or leave the flag out"
        )
    apart = {flag: given.pop(flag) for flag in IN_SECTIONS}
    if given["iterations"] == PLATEAU:
        given |= {"iterations": UNTIL_PLATEAU, "until_plateau": True}
    status, origin = given.pop("status"), given.pop("from")
    telemetry = Telemetry(given.pop("profile"), given.pop("tensorboard"))
    config_path, assignments = given.pop("config"), given.pop("set")
    config = {} if config_path is None else read_toml(Path(config_path))
    preset, file_preset = given.pop("preset"), config.pop("preset", "world")
    path = preset_path(preset or file_preset)
    layers = [(str(path), read_toml(path)), (config_path, config)]
    layers += [("the flags", {key: value for key, value in given.items() if value is not None})]
    for flag, (section, key) in IN_SECTIONS.items():
        if apart[flag] is not None:
            layers += [(f"--{flag.replace('_', '-')}", {section: {key: apart[flag]}})]
    layers += [(f"--set {text}", _assignment(text)) for text in assignments]
    begin = None if origin is None else Origin.parse(origin)
    return Command(build(layers), status, begin, telemetry)


def build(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Settings:
    """Settings from `(place, tree)` layers, where later ones win. Raises ValueError as above."""
    tree: Tree = {}
    sources: Sources = {}
    for place, layer in layers:
        _merge(tree, sources, layer, Settings, place, "")
    settings: Settings = _made(Settings, tree, sources, "")
    return settings


def preset_path(name: str) -> Path:
    """The file of a preset. Raises ValueError, naming the presets, for an unknown one."""
    path = PRESETS / f"{name}.toml"
    names = sorted(preset.stem for preset in PRESETS.glob("*.toml"))
    if name not in names:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(names)}")
    return path


def read_toml(path: Path) -> Tree:
    """The values of a TOML file. Raises ValueError naming file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check --config") from None
    except (ValueError, RecursionError) as error:  # TOML's own mistakes, no UTF-8, 999 brackets
        raise ValueError(f"{path}: expected TOML: {error}") from None


def _merge(
    tree: Tree, sources: Sources, layer: Mapping[str, Any], kind: type, place: str, prefix: str
) -> None:
    """Lays `layer` over `tree`; each key and each value must fit a field of `kind`."""
    hints = get_type_hints(kind)
    for key, value in layer.items():
        dotted = prefix + key
        if key not in hints:
            raise ValueError(f"{place}: unknown key {dotted!r}{_nearest(key, list(hints), prefix)}")
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{place}: {dotted}: expected a table [{dotted}], found {value!r}")
            _merge(tree.setdefault(key, {}), sources, value, hints[key], place, f"{dotted}.")
        else:
            tree[key] = _checked(value, hints[key], f"{place}: {dotted}")
            sources[dotted] = place


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as a field of type `hint` holds it. Raises ValueError naming `where`."""
    if get_origin(hint) in (Union, types.UnionType):
        if value == "none":
            return None
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
    if hint is float and type(value) is int:
        return float(value)
    if get_origin(hint) is tuple:
        if isinstance(value, list) and all(type(item) is get_args(hint)[0] for item in value):
            return tuple(value)
        raise ValueError(
            f"{where}: expected a list of {get_args(hint)[0].__name__}, found {value!r}"
        )
    if type(value) is not hint:
        raise ValueError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def _made(kind: type, tree: Tree, sources: Sources, prefix: str) -> Any:
    """The dataclass that `tree` describes; its own complaint gains the key's full name and its
    place.
    """
    hints = get_type_hints(kind)
    parts = {
        key: _made(hints[key], value, sources, f"{prefix}{key}.")
        if is_dataclass(hints[key])
        else value
        for key, value in tree.items()
    }
    try:
        return kind(**parts)
    except ValueError as error:
        complaint = f"{prefix}{error}"
        place = sources.get(complaint.split()[0], None)
        raise ValueError(f"{place}: {complaint}" if place else complaint) from None


def _assignment(text: str) -> Tree:
    """`section.key=value` as a tree. A value that is no TOML is a string: quotes may be left
    out.
    """
    dotted, equals, raw = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected SECTION.KEY=VALUE")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = raw
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return dict(value)


def _nearest(name: str, names: Sequence[str], prefix: str = "") -> str:
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; expected one of {', '.join(names)}"


def _iterations(text: str) -> int | str:
    return text if text == PLATEAU else int(text)


_iterations.__name__ = "number"  # what argparse calls it in a complaint


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="train.py",
        description="Self-rewarding training: a model writes, judges its own answers, and learns.",
        epilog="Running the same command again goes on where the last one stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", metavar="NAME", help="smoke, world (the default) or paper")
    parser.add_argument("--config", metavar="FILE", help="a TOML file, laid over the preset")
    parser.add_argument(
        "--run",
        "--run-dir",  # torchrun takes --run for its own --run-path, even behind the script's name
        dest="run",
        metavar="DIR",
        help="the run directory; under torchrun write --run-dir",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="M0: Llama weights, Hugging Face or Meta layout"
    )
    parser.add_argument(
        "--prompt-model", metavar="DIR", help="writes the new prompts, in all iterations"
    )
    parser.add_argument(
        "--seed-data", metavar="DIR", help="ift, ranked, held_out, eft or eft_ranked .jsonl"
    )
    parser.add_argument(
        "--iterations", metavar="N", type=_iterations, help="M1 … MN; or: until-plateau"
    )
    parser.add_argument("--seed", metavar="S", type=int)
    parser.add_argument("--sample-tp", metavar="N", type=int, help=SAMPLE_TP)
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="any other setting, as in a TOML file; may be given several times",
    )
    parser.add_argument(
        "--status", action="store_true", help="tell where the run stands; nothing is started"
    )
    parser.add_argument(
        "--from",
        metavar="OLD@M2",
        help="begin a new run from a model of another, with other settings or more iterations",
    )
    parser.add_argument("--profile", action="store_true", help=PROFILE)
    parser.add_argument("--tensorboard", action="store_true", help=TENSORBOARD)
    return parser
