"""The command line around a run: settings in, one clear line for every mistake out. Knows no step
of the loop.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from judge.rubric import SCALES
from llama.hf_tokenizer import require_our_chat_format
from llama.layout import describe
from llama.parallel import Group, PeerLost, start
from llama.shortage import out_of_memory
from llama.weights import read_checkpoint
from loop.account import Prompts, prompt_sets, read_evaluation, read_seconds
from loop.driven import Begin, G, Open
from loop.files import json_bytes
from loop.fit import check_rubric, check_shown
from loop.health import findings
from loop.identity import CONFIG
from loop.memory import advice, in_a_line, least_memory, needs, team_size, width
from loop.models import BASELINE, Models
from loop.options import Command, parse_command
from loop.overlap import prompt_overlap
from loop.page import render_page
from loop.report import build_report, render_text
from loop.rows import Row
from loop.run import Run
from loop.settings import MAY_DIFFER, WRITERS, Settings
from loop.status import standing
from loop.stop import stoppable
from loop.terminal import suit_any_terminal

STOPPED = "stopped; what is finished is kept: the same command goes on"


def run_command(open_start: Open[G], begin: Begin[G], argv: Sequence[str] | None = None) -> int:
    """Runs the loop as the flags say; returns the exit code.

    0 done · 1 another rank was lost · 2 a mistake that the user can mend, told in one line ·
    130 Ctrl-C.
    """
    suit_any_terminal()
    group: Group | None = None
    try:
        command = parse_command(sys.argv[1:] if argv is None else argv)
        settings = command.settings
        if command.status:
            print("\n".join(standing(open_start, begin, Path(settings.run))))
            return 0
        group = start(settings.machine.timeout_s, settings.machine.layout)
        _run(open_start, begin, command, group)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if not _is_for_the_user(error):
            raise
        if group is None or group.speaks or isinstance(error, PeerLost):
            where = f"rank {group.rank}: " if group and not group.is_main else ""
            print(f"error: {where}{error}", file=sys.stderr)
        return 1 if isinstance(error, PeerLost) else 2
    except KeyboardInterrupt:  # before the loop began, or after it
        if group is None or group.is_main:
            print(STOPPED, file=sys.stderr)
        return 130
    group.stop()
    return 0


def _is_for_the_user(error: Exception) -> bool:
    """A mistake or a lack that the user can mend; other errors are ours, and keep their trace."""
    return isinstance(error, (ValueError, OSError, PeerLost)) or out_of_memory(error)


def _run(open_start: Open[G], begin: Begin[G], command: Command, group: Group) -> None:
    settings = command.settings
    given, inputs = fitting_start(open_start, settings)
    kind: dict[str, Any] = {"inputs": inputs, "may_change": MAY_DIFFER, "origin": command.origin}
    with Run.open(settings.run, settings.identity(), group, **kind) as run:
        check_shared(run.root, group)
        models = Models(run, settings, group, command.telemetry)
        loop = begin(run, settings, given, models)
        _tell_layout(run, settings, given.model, group)
        with stoppable(run.say, STOPPED):
            last = loop.train()
        publish_report(run, last, given.seed)
        run.say(f"complete: everything lies in {run.root}, report.html to begin with")


def fitting_start(open_start: Open[G], settings: Settings) -> tuple[G, dict[str, Path]]:
    """What a run starts from, and where all of it lies. Raises ValueError where the settings do not
    fit it.
    """
    check_writer(settings)
    given = open_start(settings.model, settings.seed_data)
    check_rubric(settings, given)
    check_shown(settings, given)
    return given, {**given.inputs, **named_inputs(settings)}


def check_shared(root: Path, group: Group) -> None:
    """Raises ValueError, on all ranks, unless all of them see the run directory."""
    blind = group.gather_rows([] if (root / CONFIG).exists() else [group.rank])
    if blind:
        raise ValueError(
            f"{root.absolute()}: ranks {', '.join(map(str, blind))} see no {CONFIG} there; "
            "several machines need a file system that all of them share, and the same --run-dir"
        )


def _tell_layout(run: Run, settings: Settings, model: Path, group: Group) -> None:
    """How the model lies on the ranks and what a rank needs of memory, a line each, before anything
    heavy; and what to change if it is too much.
    """
    memory = least_memory(group)
    try:
        config = read_checkpoint(model).config
    except ValueError:
        return  # a finished run needs it no more; whoever loads it says what is wrong
    run.say(layout_line(config.parameter_count, settings, group))
    if group.device.type == "cpu":  # what waits in the machine's memory waits in the same memory
        settings = replace(settings, machine=replace(settings.machine, offload=False))
    ranks = group.world_size
    team = team_size(config, width(settings), ranks, memory, settings.machine.sample_tp)
    run.say(in_a_line(needs(settings, config, ranks, memory), memory, team))
    for line in advice(settings, config, ranks, memory) if memory else ():
        run.say(f"too little memory? {line}")


def layout_line(parameters: int, settings: Settings, group: Group) -> str:
    """What trains on what, at a glance: parameters, ranks, how the model is cut, type, steps."""
    parts = [describe(group, parameters, getattr(torch, settings.dtype))]
    for name, how, items in (("SFT", settings.sft, "rows"), ("DPO", settings.dpo, "pairs")):
        passes = f"passes of at most {how.micro_tokens:,} tokens a rank"
        passes += f", adapters of rank {how.lora_rank} learn" if how.lora else ""
        parts.append(f"{name}: {how.batch_size} {items} a step, {passes}")
    return "; ".join(parts)


def named_inputs(settings: Settings) -> dict[str, Path]:
    """What the settings name by its place: another prompt writer, a rubric of the user's, …"""
    writer, rubric, meta = settings.prompts.writer, settings.judging.rubric, settings.meta.template
    named = {} if writer in WRITERS else {"writer": Path(writer)}
    if rubric not in SCALES and Path(rubric).is_file():  # `load_rubric` says what is wrong if not
        named["rubric"] = Path(rubric)
    if Path(meta).is_file():  # a name of ours otherwise, or `load_comparison` says what is wrong
        named["meta"] = Path(meta)
    if settings.choice.by == "judge" and settings.choice.judge != "current":
        named["judge"] = Path(settings.choice.judge)
    return named


def check_writer(settings: Settings) -> None:
    """Raises ValueError if the prompts' writer is a chat model of another format than ours."""
    how = settings.prompts
    if how.chat and how.writer not in WRITERS:
        try:
            require_our_chat_format(Path(how.writer))
        except ValueError as error:
            raise ValueError(
                f"{error}; set prompts.chat=false to have it go on with a list"
            ) from None


def publish_report(run: Run, last: int, seed: Prompts) -> Row:
    """Writes report.json and report.html of the models up to M`last`, prints the table; returns the
    report.
    """
    names = [f"M{t}" for t in range(1, last + 1)]
    if run.stages(BASELINE):
        names = [BASELINE, *names]
    evaluations = {
        name: read_evaluation(run, name) | {"seconds": read_seconds(run, name)} for name in names
    }
    found = findings({name: row for name, row in evaluations.items() if name != BASELINE})
    overlap = prompt_overlap(prompt_sets(run, names, seed), near="IFT")
    report = build_report(evaluations, [asdict(finding) for finding in found], overlap)
    run.publish("report.json", json_bytes(report))
    name = os.fsencode(run.root.name).decode("utf-8", "replace")  # it may be any bytes
    run.publish("report.html", render_page(report, f"Self-rewarding run {name}").encode())
    run.say("\n" + render_text(report))
    return report
