"""Gives every reader of files from outside damaged files: it must read them, or refuse them by a
ValueError that names the file, at once and without taking much memory.

Guided by coverage: an input that reaches a step (from a line of ours to the next) that none before
it has reached is damaged further. `python -m faults.soak fuzz` does many, a test a few.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch
from tiny_llama import GROUPED, tiny_model, tiny_tokenizer

import llama
from dpo.checkpoint import FILES, read_state, save_training
from dpo.optimizer import make_optimizer
from dpo.settings import TrainSettings
from faults.mutators import Mutate, any_bytes, json_line, json_value, safetensors
from judge.rubric import load_rubric
from llama.header import read_header
from llama.meta import write_meta
from llama.parallel import start
from llama.weights import held, read_checkpoint
from loop import files, identity
from loop.exports import read_questions
from loop.manifest import Manifest
from loop.options import PRESETS, parse_arguments
from seed.read import read_seed
from seed.sources import read_source

ROOT = Path(__file__).parent.parent.parent
DUMPS = ROOT / "tests" / "data"
LONGEST_S, MOST_BYTES = 5.0, 2**29  # for one input
Step = tuple[str, int, int]
_QUESTIONS = b'{"id": "a", "prompt": "b"}\n{"question_id": 81, "turns": ["c", "d"]}\n'
_QUESTION_LIST = b'[{"instruction": "a", "dataset": "b"}, {"instruction": "c", "dataset": "d"}]'


@dataclass
class Reader:
    """What reads a file, and how that file is damaged."""

    name: str
    file: Path
    mutate: Mutate
    read: Callable[[], object]
    seen: set[Step] = field(default_factory=set)
    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def readers(home: Path) -> list[Reader]:
    """All of them, each with sound files of its own below `home`."""
    whole, parts, metas, run = (home / name for name in ("whole", "parts", "metas", "run"))
    seed, toml, rubric = home / "seed", home / "settings.toml", home / "rubric.txt"
    _save_models(whole, parts, metas)
    shutil.copytree(ROOT / "seed" / "world" / "data", seed)
    for path in seed.iterdir():
        path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:4]) + b"\n")
    _save_run(run)
    toml.write_bytes((PRESETS / "smoke.toml").read_bytes())
    rubric.write_text("Judge {prompt} by {response}.\n")
    model, index = "model.safetensors", "model.safetensors.index.json"
    dumps = sorted(DUMPS.glob("*.jsonl*"))
    found = [
        Reader("safetensors", whole / model, safetensors, lambda: read_header(whole / model)),
        Reader("weights", whole / model, safetensors, lambda: llama.load(whole)),
        Reader("index", parts / index, json_value, lambda: read_checkpoint(parts)),
        Reader("config.json", whole / "config.json", json_value, lambda: read_checkpoint(whole)),
        Reader("params.json", metas / "params.json", json_value, lambda: read_checkpoint(metas)),
        Reader(".pth", metas / "consolidated.00.pth", any_bytes, lambda: read_checkpoint(metas)),
        Reader("tokenizer.model", whole / "tokenizer.model", any_bytes, lambda: llama.load(whole)),
        Reader("settings", toml, any_bytes, lambda: parse_arguments(["--config", str(toml)])),
        Reader("rubric", rubric, any_bytes, lambda: load_rubric(rubric)),
        Reader("manifest", run / "manifest.json", json_value, lambda: Manifest(run)),
        Reader("run's config", run / "config.json", json_value, lambda: _config(run)),
        Reader("training", run / FILES[0], safetensors, lambda: read_state(run / FILES[0])),
    ]
    for name in ("tokenizer_config.json", "tokenizer.json"):
        found.append(Reader(name, whole / name, json_value, lambda: read_checkpoint(whole)))
    for name in ("ift", "eft", "ranked", "held_out", "eft_ranked"):
        found.append(Reader(name, seed / f"{name}.jsonl", json_line, lambda: read_seed(seed)))
    for form, mutate in ((_QUESTIONS, json_line), (_QUESTION_LIST, json_value)):
        questions = home / f"questions-{len(found)}"
        questions.write_bytes(form)
        read = partial(read_questions, questions)
        found.append(Reader(f"questions by the {mutate.__name__[5:]}", questions, mutate, read))
    for number, dump in enumerate(dumps):
        copy = home / f"{number}-{dump.name}"
        copy.write_bytes(dump.read_bytes())
        how = any_bytes if dump.suffix == ".gz" else json_line
        found.append(Reader(dump.name, copy, how, lambda copy=copy: read_source(copy, "en")))
    return found


def _config(run: Path) -> object:
    return identity.read(run / identity.CONFIG)


def _save_models(whole: Path, parts: Path, metas: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    llama.save(model, tokenizer, whole)
    usual, llama.huggingface.FILE_BYTES = llama.huggingface.FILE_BYTES, 40_000
    llama.save(model, tokenizer, parts)
    llama.huggingface.FILE_BYTES = usual
    metas.mkdir()
    write_meta(metas, held(model.state_dict()), GROUPED, tokenizer)


def _save_run(run: Path) -> None:
    settings = parse_arguments(["--preset", "smoke"]).identity()
    files.write(run / "config.json", files.json_bytes(identity.describe(settings, {})))
    files.write(run / "a.jsonl", b"{}\n")
    Manifest(run).record("a.jsonl", [""], 1.0, {})
    model = tiny_model()
    optimizer = make_optimizer(model, TrainSettings(learning_rate=1e-3), (0.9, 0.95))
    state = {"identity": {}, "progress": {"step": 1}}
    save_training(run / FILES[0], model, optimizer, state, start())


def fuzz(reader: Reader, inputs: int, seed: int) -> None:
    """Feeds it so many damaged files; what went wrong stands in `reader.wrong`."""
    draw, sound = Random(seed), reader.file.read_bytes()
    corpus = [sound]
    reader.read()  # it is sound, or nothing that follows means anything
    for _ in range(inputs):
        data = corpus[0] if draw.random() < 0.5 else draw.choice(corpus)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            data = reader.mutate(data, draw)
        reader.file.write_bytes(data)
        if feed(reader) and len(data) < 2 * len(sound) + 10_000:
            corpus.append(data)
    reader.file.write_bytes(sound)


def feed(reader: Reader) -> bool:
    """Lets it read its file as it is; whether that reached something new."""
    steps: set[Step] = set()
    begun = time.perf_counter()
    sys.settrace(_tracing(steps))
    problem = ""
    try:
        reader.read()
    except ValueError as error:
        reader.refused += 1
        if reader.file.name not in str(error) and str(reader.file.parent) not in str(error):
            problem = f"a refusal that does not name the file: {error}"
    except BaseException as error:
        problem = repr(error)
    finally:
        sys.settrace(None)
    seconds = time.perf_counter() - begun
    reader.inputs, reader.slowest_s = reader.inputs + 1, max(reader.slowest_s, seconds)
    if seconds > LONGEST_S:
        problem = f"{seconds:.1f} s"
    if problem:
        reader.wrong.append(problem)
        kept = reader.file.with_name(f"wrong-{len(reader.wrong)}")
        kept.write_bytes(reader.file.read_bytes())
    new = not steps <= reader.seen
    reader.seen |= steps
    return new


def _tracing(steps: set[Step]) -> Callable[..., Any]:
    """Notes each step from line to line in code of ours."""
    ours = str(ROOT)
    last: dict[int, int] = {}

    def line(frame: FrameType, event: str, _: Any) -> Any:
        steps.add((frame.f_code.co_filename, last.get(id(frame), 0), frame.f_lineno))
        last[id(frame)] = frame.f_lineno
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(ours) else None

    return call


def soak(home: Path, inputs: int) -> int:
    """Many inputs to every reader; tells what came of it, returns how many went wrong."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limit = MOST_BYTES + int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # more is refused by the system
    total, bad = 0, 0
    for number, reader in enumerate(readers(home)):
        torch.set_num_threads(1)
        fuzz(reader, inputs, seed=number)
        total, bad = total + reader.inputs, bad + len(reader.wrong)
        print(
            f"{reader.name}: {reader.inputs} inputs, {reader.refused} refused, {len(reader.seen)} "
            f"steps of ours reached, slowest {reader.slowest_s:.2f} s, {len(reader.wrong)} wrong",
            flush=True,
        )
        for problem in reader.wrong[:3]:
            print(f"  {problem[:300]}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20
    print(f"fuzz: {total} inputs, {bad} wrong; {grown:.0f} MiB more memory at most")
    return bad
