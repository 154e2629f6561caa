"""Scores a file of answers.

python -m judge MODEL --in answers.jsonl --out judgements.jsonl    rows {id, prompt, response}
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from judge.complete import Row
from judge.rubric import SCALES, Rubric, load_rubric
from judge.score import judge_responses
from llama import Tokenizer, encode_prompt
from llama.files import require_place
from llama.parallel import start
from loop.files import jsonl_bytes, write
from loop.replica import SAMPLE_TP, load_replica
from loop.terminal import suit_any_terminal
from sampling.complete import Completer
from seed.rows import STRING, read_rows, refuse


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for a mistake of the user's, 130 for Ctrl-C."""
    suit_any_terminal()
    given = parse(arguments)
    try:
        rubric = load_rubric(given.rubric)
        items = read_rows(given.source, {"id": STRING, "prompt": STRING, "response": STRING})
        group = start()
        if group.is_main:
            require_place(given.target, given.source)
        dtype = torch.bfloat16 if group.device.type == "cuda" else torch.float32
        model, tokenizer, team = load_replica(given.model, group, dtype, given.sample_tp)
        require_room(items, given.source, rubric, tokenizer, model.config.max_seq_len)
        judgements = judge_responses(
            Completer(model, tokenizer, group=team),
            rubric,
            items,
            k=given.k,
            seed=given.seed,
            temperature=given.temperature,
            top_p=given.top_p,
            max_new_tokens=given.max_new_tokens,
            expected=given.expected,
        )
        if group.is_main:
            write(given.target, jsonl_bytes(judgements))
            print(told(judgements), file=sys.stderr)
        group.stop()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags; leaves with exit code 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        "python -m judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint directory, Hugging Face's layout or Meta's")
    add("--in", dest="source", type=Path, required=True, metavar="FILE", help="the answers")
    add("--out", dest="target", type=Path, required=True, metavar="FILE", help="the judgements")
    names = ", ".join(SCALES)
    add("--rubric", default="additive", help=f"{names}, or a text file of yours (%(default)s)")
    add("--k", type=int, default=3, help="judgements of each answer (%(default)s)")
    add("--temperature", type=float, default=0.7, help="0: always the likeliest (%(default)s)")
    add("--top-p", type=float, default=0.9, help="share of likelihood drawn from (%(default)s)")
    add("--max-new-tokens", type=int, default=512, help="longest judgement (%(default)s)")
    more = "the mean over all scores, by their probability where one was written"
    add("--expected", action="store_true", help=more)
    add("--seed", type=int, default=0, help="of the randomness (%(default)s)")
    add("--sample-tp", type=int, metavar="N", help=SAMPLE_TP)
    return parser.parse_args(arguments)


def require_room(
    items: Sequence[Row], path: Path, rubric: Rubric, tokenizer: Tokenizer, longest: int
) -> None:
    """Raises ValueError naming the first line whose judge's prompt leaves no room for a reply."""
    for line, item in enumerate(items, start=1):
        prompt = rubric.render(item["prompt"], item["response"])
        tokens = len(encode_prompt(tokenizer, prompt))
        if tokens >= longest:
            complaint = f"expected fewer than {longest} tokens with the rubric, found {tokens}"
            refuse(path, line, complaint, "shorten the answer or the rubric")


def told(judgements: Sequence[Row]) -> str:
    """How many judgements have a score, and why the others have none."""
    silent = [row for row in judgements if row["score"] is None]
    cut = sum(not row["finished"] for row in silent)
    scored = len(judgements) - len(silent)
    return (
        f"{len(judgements)} judgements: {scored} with a score, {len(silent) - cut} without one, "
        f"{cut} cut off by --max-new-tokens"
    )


if __name__ == "__main__":
    sys.exit(main())
