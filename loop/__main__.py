"""What can be done with a finished run.

python -m loop compare RUN M3 M1       wins, ties and losses; without models: all pairs of the run
python -m loop trace RUN/M1 r0.5       a preference pair, and all that made it
python -m loop export RUN/M3 --to alpaca-eval --out FILE    its held-out answers, for other tools
python -m loop export MODEL --to mt-bench --prompts question.jsonl --out FILE    answers them first
torchrun --nproc-per-node 8 -m loop compare RUN --judge DIR --sample-tp 4    two replicas on 8 GPUs
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from llama import Llama, Tokenizer, encode_dialog
from llama.files import require_place
from llama.parallel import Group, start
from llama.team import Team
from loop.axes import GREEDY
from loop.compare import WAYS, by_judge, by_truth, judged, pairs_of, table
from loop.exports import ALPACA_EVAL, FORMS, alpaca_eval, held_out, mt_bench, read_questions
from loop.files import jsonl_bytes, write
from loop.finished import FinishedRun
from loop.replica import SAMPLE_TP, load_replica
from loop.rows import Row, Rows
from loop.terminal import suit_any_terminal
from loop.trace import trace
from sampling import Completer, Decoding, Request
from sampling.complete import sample_on_ranks


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for a mistake of the user's, 130 for Ctrl-C."""
    suit_any_terminal()
    given = parse(arguments)
    try:
        group = start()
        if given.command != "trace" and given.out and group.is_main:
            require_place(given.out, vars(given).get("prompts"))
        {"compare": compare, "trace": show_pair, "export": export}[given.command](given, group)
        group.stop()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags; leaves with exit code 2 where they do not go together."""
    parser = argparse.ArgumentParser(
        "python -m loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("compare", help="models of a run, head to head").add_argument
    add("run", type=Path, metavar="RUN", help="a run directory")
    add("models", nargs="*", metavar="M", help="two or more, each against those after it")
    add("--judge", metavar="DIR", help="a model of the run, or any directory (the first model)")
    add("--by", choices=WAYS, default="pairwise", help="both orders · scores · truth (%(default)s)")
    add("--out", type=Path, metavar="FILE", help="the comparisons, row by row")
    add("--sample-tp", type=int, metavar="N", help=SAMPLE_TP)
    add("--seed-data", type=Path, metavar="DIR", help="if it has moved since the run")
    add = commands.add_parser("trace", help="how a preference pair came about").add_argument
    add("model", type=Path, metavar="MODEL", help="the model of a run that made the pair")
    add("pair", metavar="PAIR", help="its id in pairs.jsonl")
    add = commands.add_parser("export", help="answers for other tools").add_argument
    add("model", type=Path, metavar="MODEL", help="a model of a run; with --prompts, any model")
    add("--to", choices=FORMS, required=True)
    add("--out", type=Path, required=True, metavar="FILE")
    add("--name", help="the model's name in the file (its path's last two parts)")
    add("--prompts", type=Path, metavar="FILE", help="questions to be answered, JSON Lines")
    add("--temperature", type=float, default=0.0, help="with --prompts (%(default)s: greedy)")
    add("--top-p", type=float, default=0.9, help="with --prompts (%(default)s)")
    add("--max-new-tokens", type=int, default=1024, help="with --prompts (%(default)s)")
    add("--seed", type=int, default=0, help="with --prompts (%(default)s)")
    add("--sample-tp", type=int, metavar="N", help=f"with --prompts: {SAMPLE_TP}")
    add("--seed-data", type=Path, metavar="DIR", help="if it has moved since the run")
    return parser.parse_args(arguments)


def compare(given: argparse.Namespace, group: Group) -> None:
    """Prints the table, and writes the rows where `--out` says so."""
    run = FinishedRun(given.run, given.seed_data)
    pairs = pairs_of(run, given.models)
    if given.by == "truth":
        found = [by_truth(run, ours, theirs) for ours, theirs in pairs]
    else:
        judge = given.judge or pairs[0][0]
        path = run.root / judge if (run.root / judge).is_dir() else Path(judge)
        model, tokenizer, team = opened(path, group, given.sample_tp)
        way = by_judge(run, Completer(model, tokenizer, group=team), given.by)
        found = [judged(run, ours, theirs, way) for ours, theirs in pairs]
    numbers = [row for row, _ in found]
    if group.is_main:
        if given.out:
            write(given.out, jsonl_bytes(row for _, rows in found for row in rows))
        print(table(numbers))
        if all(row["win_rate"] is None for row in numbers):
            print("not one verdict could be read: has this judge learnt to compare? --by scores")


def show_pair(given: argparse.Namespace, group: Group) -> None:
    """Prints the pair's prompt, its demonstrations, all answers and their judgements."""
    if group.is_main:
        print(trace(given.model, given.pair))


def export(given: argparse.Namespace, group: Group) -> None:
    """Writes the answers in the form of another tool, and says how many."""
    if given.prompts:
        questions = answered(given, read_questions(given.prompts), group)
    else:
        run = FinishedRun(given.model.parent, given.seed_data)
        questions = held_out(run.prompts(), run.texts(given.model.name, GREEDY))
    name = given.name or "/".join(given.model.resolve().parts[-2:])
    if given.to == ALPACA_EVAL:
        data = alpaca_eval(questions, name)
    else:
        data = mt_bench(questions, name, time.time())
    if group.is_main:
        write(given.out, data)
        print(f"{len(questions)} answers of {name}: {given.out}")


def opened(path: Path, group: Group, asked: int | None) -> tuple[Llama, Tokenizer, Team]:
    """A model in its sampling form, and the team that holds it."""
    dtype = torch.bfloat16 if group.device.type == "cuda" else torch.float32
    return load_replica(path, group, dtype, asked)


def answered(given: argparse.Namespace, questions: Rows, group: Group) -> Rows:
    """The questions with the model's `answers`, turn after turn of each dialog; an empty one, and a
    line that says so, where the dialog so far fills the context.
    """
    if given.to == ALPACA_EVAL and (long := [q for q in questions if len(q["turns"]) > 1]):
        raise ValueError(
            f"{given.prompts}: question {long[0]['id']!r} has {len(long[0]['turns'])} turns, "
            "AlpacaEval takes one; --to mt-bench"
        )
    model, tokenizer, team = opened(given.model, group, given.sample_tp)
    stop = frozenset({tokenizer.eos_id})
    decoding = Decoding(given.temperature, given.top_p, given.max_new_tokens, stop)
    dialogs: list[list[dict[str, str]]] = [[] for _ in questions]
    for turn in range(max(len(row["turns"]) for row in questions)):
        going = [place for place, row in enumerate(questions) if turn < len(row["turns"])]
        for place in going:
            asked = questions[place]["turns"][turn]
            dialogs[place].append({"role": "user", "content": asked})
        samples = sample_on_ranks(
            model,
            [Request(f"{i}.{turn}", encode_dialog(tokenizer, dialogs[i])[0], 1) for i in going],
            decoding,
            seed=given.seed,
            group=team,
            description=f"turn {turn + 1}",
            shown=group.is_main,
        )
        for place, (sample,) in zip(going, samples):
            if sample.refused and group.is_main:
                name = questions[place]["id"]
                why = f"{sample.refused}; answer {turn + 1} is empty"
                print(f"refused: {given.prompts}: {name!r}: {why}", file=sys.stderr)
            said = tokenizer.decode(sample.token_ids).strip()
            dialogs[place].append({"role": "assistant", "content": said})
    return [_with_answers(row, dialog) for row, dialog in zip(questions, dialogs)]


def _with_answers(question: Row, dialog: Sequence[dict[str, str]]) -> Row:
    said = [message["content"] for message in dialog if message["role"] == "assistant"]
    return question | {"answers": said}


if __name__ == "__main__":
    sys.exit(main())
