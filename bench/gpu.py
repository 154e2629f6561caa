"""`python -m bench.gpu`: sampling by a model of 7B's shape on one GPU, against the card's limits.

Weights are random and in bf16. Raced are our engine, our engine with grouping off on an eighth of
the prompts, and `transformers`' generate on the same weights, on as many prompts as the card has
room for at once. The roofline takes what the card does in the same run,
copying memory and multiplying matrices: prompts are arithmetic; a step reads the weights once, or
multiplies by them for all its samples, whichever takes longer, and it reads all keys and values:
once for all that share them. Takes minutes; `--miniature` runs it on the CPU with tiny shapes, to
see that it works.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from bench import floor
from bench.options import folder, place
from bench.race import Run
from bench.report import number
from bench.sampling_race import drawn, grouping_off, run_ours, run_theirs
from bench.shapes import Ending, Workload, requests
from llama import PRESETS, Llama
from llama.cache import token_bytes
from llama.config import to_hf
from llama.files import replace_file
from llama.huggingface import hf_names
from sampling import Request, generate

SEVEN = replace(PRESETS["7B"], max_seq_len=2048)
JUDGE = Workload("judge rows", 384, 3, 400, 900, 1100, 1150, SEVEN, most_new=320)
CANDIDATES = Workload("candidates", 384, 4, 8, 350, 450, 550, SEVEN, most_new=256)
SEED, WARMING = 0, 32  # prompts, whose samples are as many as any kernel takes at once
AT_ONCE = {JUDGE: 32, CANDIDATES: 64}  # prompts that `transformers` takes
HEADER = "| workload | tokens | ours | grouping off | transformers | roofline | ours of it |"


@dataclass(frozen=True)
class Card:
    """What a device does: bytes a second, copying (read and written); operations a second."""

    name: str
    bandwidth: float
    rate: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 2, after one line, for what the user can mend."""
    given = parsed("python -m bench.gpu", __doc__, arguments)
    if given is None:
        return 2
    device = torch.device("cpu" if given.miniature else "cuda")
    dtype = torch.float32 if given.miniature else torch.bfloat16
    workloads = [JUDGE, CANDIDATES]
    if given.miniature:
        workloads = [
            Workload("judge rows", 4, 3, 20, 30, 40, 50),
            Workload("candidates", 4, 4, 5, 24, 32, 44),
        ]
    card = measure(device, dtype, 256 if given.miniature else 8192)
    lines = [
        f"## Sampling on {card.name}\n",
        f"`python -m bench.gpu`, torch {torch.__version__}: it copies {card.bandwidth / 1e12:.2f} "
        f"TB/s and multiplies at {card.rate / 1e12:.1f} TFLOP/s. Tokens a second:\n",
        HEADER,
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for workload in workloads:
        lines.append(race(workload, card, device, dtype))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if given.out:
        replace_file(given.out, text.encode())
    return 0


def parsed(
    program: str, description: str | None, arguments: Sequence[str] | None, writes: bool = False
) -> argparse.Namespace | None:
    """The flags of a bench on a GPU; None, after one line, where there is no GPU.

    writes: a large directory, so the user may say where.
    """
    parser = argparse.ArgumentParser(program, description=description)
    parser.add_argument("--miniature", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--out", type=place, help="file to write, too")
    if writes:
        room = "where to make the directory (the system's own)"
        parser.add_argument("--room", type=folder, help=room)
    given = parser.parse_args(arguments)
    if given.miniature or torch.cuda.is_available():
        return given
    print("error: there is no GPU here; --miniature runs on the CPU", file=sys.stderr)
    return None


def race(workload: Workload, card: Card, device: torch.device, dtype: torch.dtype) -> str:
    """A row of the table."""
    model, asked = random_model(workload, device, dtype), requests(workload, SEED)
    for few in (1, WARMING):  # kernels are compiled, for one and for many
        run_ours(model, asked[:few], workload, SEED)
    started = time.perf_counter()
    made = generate(model, asked, workload.decoding(), seed=SEED)
    seconds = time.perf_counter() - started
    lengths = [[drawn(sample) for sample in several] for several in made]
    ours = Run(sum(map(sum, lengths)), seconds)
    with grouping_off(asked[::8]) as alone:
        off = run_ours(model, alone, workload, SEED)
    theirs = "not installed"
    if find_spec("transformers"):
        copy, rows = twin(model), sorted(zip(asked, lengths), key=lambda row: len(row[0].token_ids))
        size = AT_ONCE.get(workload, 4)
        first = (len(rows) - size) // 2  # those of usual length
        theirs = number(run_theirs(copy, rows[first : first + size], size).rate)
    limit = ours.count / roofline(workload, asked, lengths, card, dtype)
    cells = (workload.name, ours.count, number(ours.rate), number(off.rate), theirs, number(limit))
    return f"| {' | '.join(map(str, cells))} | {ours.rate / limit:.0%} |"


def roofline(
    workload: Workload,
    asked: Sequence[Request],
    lengths: Sequence[Sequence[int]],
    card: Card,
    dtype: torch.dtype,
) -> float:
    """Seconds that the card cannot go below, all samples being side by side from first to last."""
    config, shared = workload.config, workload.template
    a_token, lanes = token_bytes(config, dtype), workload.prompts * workload.n
    reading = held = 0
    for request, several in zip(asked, lengths):
        P = len(request.token_ids) - shared
        reading += floor.forward(config, P, P * (P + 1) // 2 + P * shared, 1, P + shared)
        held += P * max(several) + sum(N * (N + 1) // 2 for N in several)
    tokens = sum(map(sum, lengths))
    steps = tokens / lanes
    weights = config.parameter_count * dtype.itemsize / card.bandwidth
    step = max(weights, lanes * floor.forward(config, 1, 0, 1, 0) / card.rate)
    return reading / card.rate + steps * step + (held + steps * shared) * a_token / card.bandwidth


def measure(device: torch.device, dtype: torch.dtype, size: int) -> Card:
    """The device's rates: the best of some tries."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    rate = 2 * size**3 / _best(lambda: a @ b, device)
    big = torch.empty(16 * size * size, device=device, dtype=dtype)
    other = torch.empty_like(big)
    bandwidth = 2 * big.nbytes / _best(lambda: other.copy_(big), device)
    return Card(device_name(device), bandwidth, rate)


def device_name(device: torch.device) -> str:
    """For a heading."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "a CPU, in miniature"


def _best(work: Callable[[], Any], device: torch.device, tries: int = 10) -> float:
    seconds = []
    for _ in range(tries):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_model(workload: Workload, device: torch.device, dtype: torch.dtype) -> Ending:
    """A model of the workload's shape, made where it is used."""
    with torch.device("meta"):
        model = Ending(workload.config, workload.end)
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(SEED)
    model.init_weights()
    return model.eval()


def twin(model: Llama) -> Any:
    """A `LlamaForCausalLM` with the model's own weights, without a copy."""
    transformers = import_module("transformers")
    weight = next(model.parameters())
    config = transformers.LlamaConfig.from_dict(to_hf(model.config))
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    names = hf_names(model.config)
    state = {names[name]: tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict(state, strict=False, assign=True)
    theirs.tie_weights()
    rotary = type(theirs.model.rotary_emb)
    theirs.model.rotary_emb = rotary(config=config).to(weight.device)
    return theirs.eval()


if __name__ == "__main__":
    sys.exit(main())
