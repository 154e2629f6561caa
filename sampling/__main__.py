"""Samples for a file of prompts, or a chat in the terminal.

python -m sampling MODEL --in prompts.jsonl --out samples.jsonl    rows {id, prompt}
python -m sampling MODEL --in prompts.jsonl --out samples.jsonl --raw    {id, token_ids}
torchrun --nproc-per-node 8 -m sampling MODEL --in … --out … --sample-tp 4    two replicas on 8 GPUs
python -m sampling MODEL    a chat: Ctrl-C stops an answer, Ctrl-D leaves
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama import Llama, LlamaConfig, Tokenizer, encode_prompt
from llama.files import require_place
from llama.parallel import start
from llama.team import Team
from loop.files import jsonl_bytes, write
from loop.replica import SAMPLE_TP, load_replica
from loop.terminal import suit_any_terminal
from sampling.batch import Decoding, Sample
from sampling.complete import sample_on_ranks
from sampling.spread import Request
from sampling.talk import Talk
from seed.rows import STRING, Kind, Row, read_rows, refuse


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    1 some prompts were refused · 2 a mistake of the user's · 130 Ctrl-C
    """
    suit_any_terminal()
    given = parse(arguments)
    try:
        rows, refused = read(given.source, given.raw) if given.source else None, 0
        group = start()
        if given.target and group.is_main:
            require_place(given.target, given.source)
        dtype = torch.bfloat16 if group.device.type == "cuda" else torch.float32
        model, tokenizer, team = load_replica(given.model, group, dtype, given.sample_tp)
        stop = frozenset({tokenizer.eos_id})
        decoding = Decoding(given.temperature, given.top_p, given.max_new_tokens, stop, given.logps)
        if rows is None:
            chat(Talk(model, tokenizer, decoding, given.seed, given.system))
        else:
            refused = sample_file(given, rows, model, tokenizer, decoding, team)
        group.stop()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 1 if refused else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags; leaves with exit code 2 where they do not go together."""
    parser = argparse.ArgumentParser(
        "python -m sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint directory, Hugging Face's layout or Meta's")
    add("--in", dest="source", type=Path, metavar="FILE", help="prompts, one JSON object a line")
    add("--out", dest="target", type=Path, metavar="FILE", help="where the samples go")
    add("--raw", action="store_true", help="rows hold token_ids, continued as they are")
    add("--n", type=int, default=1, help="samples of each prompt (%(default)s)")
    add("--system", help="a system message for the chat")
    add("--temperature", type=float, default=0.7, help="0: always the likeliest (%(default)s)")
    add("--top-p", type=float, default=0.9, help="share of likelihood drawn from (%(default)s)")
    add("--max-new-tokens", type=int, default=512, help="longest sample (%(default)s)")
    add("--seed", type=int, default=0, help="of the randomness (%(default)s)")
    add("--sample-tp", type=int, metavar="N", help=SAMPLE_TP)
    add("--logps", action="store_true", help="also the tokens' log-probabilities")
    given = parser.parse_args(arguments)
    if (given.source is None) != (given.target is None):
        parser.error("--in and --out go together; without both it is a chat")
    if given.source is None and given.sample_tp not in (None, 1):
        parser.error("--sample-tp is for files; add --in and --out")
    if given.source is None and (given.raw or given.logps or given.n != 1):
        parser.error("--raw, --logps and --n are for files; add --in and --out")
    if given.source is not None and given.system is not None:
        parser.error("--system is for the chat; leave out --in and --out")
    return given


def read(path: Path, raw: bool) -> list[Row]:
    """Rows `{id, prompt}` or, raw, `{id, token_ids}`. Raises ValueError naming file and line."""
    ids = Kind("a list of one or more token ids", _are_ids)
    return read_rows(path, {"id": STRING} | ({"token_ids": ids} if raw else {"prompt": STRING}))


def requests_of(
    rows: Sequence[Row],
    path: Path,
    encode: Callable[[str], list[int]] | None,
    n: int,
    config: LlamaConfig,
) -> list[Request]:
    """A request for n samples of each row; encode: None where the rows hold token ids.

    Raises ValueError naming the line of a prompt that the model cannot read.
    """
    requests = []
    for line, row in enumerate(rows, start=1):
        ids = encode(row["prompt"]) if encode else row["token_ids"]
        if max(ids) >= config.vocab_size:
            complaint = f"expected token ids below {config.vocab_size}, found {max(ids)}"
            refuse(path, line, complaint, "use the tokenizer of this model")
        requests.append(Request(row["id"], ids, n))
    return requests


def sample_file(
    given: argparse.Namespace,
    rows: Sequence[Row],
    model: Llama,
    tokenizer: Tokenizer,
    decoding: Decoding,
    team: Team,
) -> int:
    """Writes the samples of all rows; says which are refused, and returns how many these are."""
    encode = None if given.raw else partial(encode_prompt, tokenizer)
    decode = tokenizer.decode if given.raw else partial(decode_answer, tokenizer)
    requests = requests_of(rows, given.source, encode, given.n, model.config)
    samples = sample_on_ranks(
        model,
        requests,
        decoding,
        seed=given.seed,
        group=team,
        description="sampling",
        shown=team.is_main,
    )
    refused = [
        (request.id, made[0].refused) for request, made in zip(requests, samples) if made[0].refused
    ]
    if team.is_main:
        write(given.target, jsonl_bytes(sample_rows(requests, samples, decode)))
        for name, why in refused:
            print(f"refused: {name!r}: {why}", file=sys.stderr)
    return len(refused)


def sample_rows(
    requests: Sequence[Request],
    samples: Sequence[Sequence[Sample]],
    decode: Callable[[list[int]], str],
) -> list[Row]:
    """Rows `{id, prompt_id, k, text, token_ids, finished}`, and `logps` or `refused` where samples
    have them.
    """
    return [
        {
            "id": f"{request.id}.{k}",
            "prompt_id": request.id,
            "k": k,
            "text": decode(made.token_ids),
            "token_ids": made.token_ids,
            "finished": made.finished,
            **({} if made.logps is None else {"logps": made.logps}),
            **({} if made.refused is None else {"refused": made.refused}),
        }
        for request, its_samples in zip(requests, samples)
        for k, made in enumerate(its_samples)
    ]


def decode_answer(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of an answer, without the spaces that the chat format puts around it."""
    return tokenizer.decode(ids).strip()


def chat(talk: Talk) -> None:
    """Reads a line, prints the answer as it is written, until the input ends."""
    while sys.stdin is not None:  # it may be closed from the beginning
        try:
            said = input("> ").strip()
            if not said:
                continue
            _, finished = talk.answer(said, lambda piece: print(piece, end="", flush=True))
            print("" if finished else " …")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(stopped; Ctrl-D leaves)")
        except ValueError as error:
            print(f"({error})")


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


if __name__ == "__main__":
    sys.exit(main())
