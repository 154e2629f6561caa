"""A run with every kind of stage, small enough to be killed at each of its operations."""

from functools import partial

from loop import files
from loop.run import Run

SETTINGS = {"seed": 0, "sft": {"epochs": 1.0, "sizes": (1, 2)}}


def never(*_):
    raise AssertionError("a finished stage was made again")


def small_loop(directory, group, made=None, settings=SETTINGS, weight=b"w", **how):
    """A run with every kind of stage. `made` gathers what was really made. Returns what it read."""
    made = [] if made is None else made

    def checkpoint(unfinished):
        frozen = unfinished / "training.0.safetensors"
        made.append("the end of M1" if frozen.exists() else "M1")
        group.barrier()
        frozen.write_bytes(b"f")
        (unfinished / "sub").mkdir(exist_ok=True)
        (unfinished / "model").write_bytes(weight)
        (unfinished / "sub" / "tokenizer").write_bytes(b"t")
        return {"steps": 3}

    def respond(prompts):
        made.append([row["id"] for row in prompts])
        return [{"id": f"{row['id']}/{k}", "k": k} for row in prompts for k in range(2)]

    def prompts():
        made.append("prompts")
        return [{"id": f"p{n}", "text": "é"} for n in range(5)], {"repeats": 2}

    def evaluate():
        made.append("eval")
        return {"score": 1.5}

    with Run.open(directory, settings, group, **how) as run:
        run.directory("M1", checkpoint, "M1")
        rows = run.rows("M1/prompts.jsonl", prompts, "prompts")
        each = partial(map, respond)
        answers = run.rows_in_units("M1/responses.jsonl", rows, each, "responses", unit=2)
        return rows, answers, run.json("M1/eval.json", evaluate, "eval"), run.counts("M1")


EVERYTHING = ["M1", "prompts", ["p0", "p1"], ["p2", "p3"], ["p4"], "eval"]


def kept(directory):
    """Every file by name, but for the two that hold times and process numbers."""
    return {
        name: (directory / name).read_bytes()
        for name in files.names_in(directory)
        if name not in ("manifest.json", ".lock")
    }


class Killed(BaseException):
    """Stands for kill -9: no handler of ours may catch it."""
