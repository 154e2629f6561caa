"""SFT and DPO: rows or pairs in, better weights out. Knows no text and no tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from dpo.batches import PACKED, PADDED, Dealer, Layout, micro_batches
from dpo.blocks import running_blocks
from dpo.descent import Descent, forward_logps
from dpo.lines import Pair, Row, pair_line, row_line
from dpo.objectives import DPO, SFT
from dpo.reference import Reference, reference_key, reference_logps, rows_key
from dpo.settings import TrainSettings
from dpo.telemetry import NOTHING, Telemetry
from llama import fingerprint
from llama.children import most_processes
from llama.cut import is_sharded
from llama.lora import begin, chosen, fold
from llama.model import Llama
from llama.parallel import Group

LARGEST = 2**26  # weights: of a larger model threads share the products well enough
PROBES = 64  # rows by which lazy SFT data are known again: reading all would mean encoding all


def train_sft(
    model: Llama,
    rows: Sequence[Row],
    settings: TrainSettings,
    *,
    seed: int,
    group: Group,
    directory: Path | None = None,
    description: str = "SFT",
    processes: int | None = None,
    telemetry: Telemetry = NOTHING,
) -> dict[str, float]:
    """Trains `model` in place on the response tokens of `rows`: all its weights, or, with a
    `lora_rank`, the adapters that it was loaded with, which then are added to the weights.

    rows: may encode lazily; each is read when its turn comes, once an epoch.
    directory: gets `train.jsonl`, a line a step, and every `save_every` steps the frozen run, from
      which the same call goes on to the same bytes (`forget` removes it). None: nothing is kept.
    processes: that share a step's rows; by default one a thread of torch's, for a small model
      on a CPU, where torch sees no GPU. It changes the speed, and how sums are rounded.
    telemetry: what else to show of it, in a folder of `directory`; it changes no bit.
    Returns the last step's metrics and `steps, skipped, tokens, seconds, tokens_per_second`, and
    `mfu` where the card's peak is known (`dpo.speed`).
    Raises ValueError, naming the row or the step, for data that cannot be trained on, for a
    directory that holds another run, for adapters other than the settings', where loss or gradient
    stay infinite or NaN, and where memory does not suffice; OSError if nothing can be written.
    """
    _check_adapters(model, settings)
    line = partial(row_line, longest=model.config.max_seq_len)
    dealer = Dealer(rows, line, settings.batch_size, seed)
    probes = sorted({i * (len(rows) - 1) // (PROBES - 1) for i in range(PROBES)})
    known = rows if isinstance(rows, list) else (rows[i] for i in probes)
    data = f"{len(rows)} rows {rows_key(known)}"
    objective = SFT(dealer, settings, _layout(settings, group))
    identity = {"data": data, "model": _beginning(model)}
    count = _processes(model, settings, group, processes)
    with _adapting(model, f"{seed} {data}"):
        descent = Descent(
            model, objective, settings, seed=seed, group=group, directory=directory,
            processes=count, telemetry=telemetry,
        )  # fmt: skip
        return descent.run(identity, description)


def train_dpo(
    model: Llama,
    pairs: Sequence[Pair],
    settings: TrainSettings,
    *,
    seed: int,
    group: Group,
    directory: Path | None = None,
    replay: Sequence[Row] = (),
    description: str = "DPO",
    after_step: Callable[[int, int], None] | None = None,
    reference: Reference | None = None,
    processes: int | None = None,
    telemetry: Telemetry = NOTHING,
) -> dict[str, float]:
    """Trains `model` in place by DPO on `pairs`; the reference is the model as it is given, or what
    is given of another one's log-probabilities (`pair_logps`).

    With a `replay_weight` each step also takes `batch_size` rows of `replay`. `after_step` is
    called with (steps taken, steps in all), on all ranks; the steps after the last frozen one come
    again when a run goes on. Otherwise as `train_sft`; `directory` also gets the reference's
    log-probabilities.
    """
    _check_adapters(model, settings)
    size, longest = settings.batch_size, model.config.max_seq_len
    dealer = Dealer(pairs, partial(pair_line, longest=longest), size, seed)
    layout, replayed = _layout(settings, group), None
    if settings.replay_weight:
        replayed = Dealer(replay, partial(row_line, longest=longest), size, seed)
    start = _beginning(model)
    key, count = reference_key(start, pairs), _processes(model, settings, group, processes)
    data = f"{len(pairs)} pairs {key}, {len(replay)} rows {rows_key(replay)}"
    if reference is None:
        with running_blocks(model, compiled=settings.compile):  # the kernels that will train
            reference = _reference(
                model, dealer, settings.micro_tokens, key, group, directory, count, layout
            )
    else:
        data += f", reference {hashlib.sha256(torch.cat(reference).numpy().tobytes()).hexdigest()}"
    objective = DPO(dealer, reference, replayed, settings, layout)
    with _adapting(model, f"{seed} {rows_key(pair.chosen for pair in pairs)}"):
        descent = Descent(
            model, objective, settings, seed=seed, group=group, directory=directory,
            processes=count, telemetry=telemetry,
        )  # fmt: skip
        return descent.run({"data": data, "model": start}, description, after_step)


def pair_logps(model: Llama, pairs: Sequence[Pair], micro_tokens: int, group: Group) -> Reference:
    """Summed response log-probabilities in fp32: (chosen [P], rejected [P])."""
    line = partial(pair_line, longest=model.config.max_seq_len)
    dealer = Dealer(pairs, line, batch_size=len(pairs), seed=0)
    return _reference(model, dealer, micro_tokens, "", group, directory=None)


def row_logps(model: Llama, rows: Sequence[Row], micro_tokens: int, group: Group) -> list[float]:
    """Summed log-probability in nats, in fp32, of the response tokens of each row; no dropout."""
    model.eval()
    lines = [row_line(row, i, model.config.max_seq_len) for i, row in enumerate(rows)]
    known: list[tuple[int, float]] = []
    with torch.no_grad():
        micros = micro_batches(lines, micro_tokens, group.world_size)
        for mine in micros[group.rank :: group.world_size]:
            logps = forward_logps(model, mine, group.device).tolist()
            known += [(line.index, logp) for line, logp in zip(mine, logps)]
    return [logp for _, logp in sorted(group.gather_rows(known))]


def _beginning(model: Llama) -> str:
    """The weights, and the type that they are computed with, unless it is the usual one."""
    computed_in = model.computed_in or next(model.parameters()).dtype
    return fingerprint(model) + ("" if computed_in == torch.float32 else f" in {computed_in}")


def _processes(model: Llama, settings: TrainSettings, group: Group, asked: int | None) -> int:
    """How many processes of this rank share a step. Other ranks are processes already."""
    apart = group.world_size > 1 or is_sharded(model) or settings.compile
    if apart or model.config.parameter_count > LARGEST:
        return 1
    if asked is None and torch.accelerator.is_available():
        return 1  # next to a GPU autograd keeps threads, and computes nothing in a fork after that
    return min(asked or most_processes(group.device), settings.batch_size)


def _layout(settings: TrainSettings, group: Group) -> Layout:
    """Packed on a CPU, where a kernel's call costs little beside a line's tokens; not compiled, for
    each step's lengths are others."""
    return PADDED if settings.compile or group.device.type != "cpu" else PACKED


def _check_adapters(model: Llama, settings: TrainSettings) -> None:
    if chosen(model) != settings.lora:
        raise ValueError(
            f"the settings want {settings.lora or 'lora_rank 0'}, the model has "
            f"{chosen(model) or 'no adapters'}: load it with lora=settings.lora"
        )


@contextmanager
def _adapting(model: Llama, seed: str) -> Iterator[None]:
    """Draws the adapters, if there are any; what they learnt becomes part of the weights.

    seed: with the data in it, so that each iteration's adapters begin elsewhere; without the
      weights, whose last bits depend on the number of ranks.
    """
    _reshard(model)
    begin(model, seed)
    yield
    _reshard(model)
    fold(model)


def _reshard(model: Llama) -> None:
    """A forward pass without gradients leaves FSDP's root whole: the optimizer would be given
    weights that are about to be thrown away."""
    if is_sharded(model):
        model.reshard()


def _reference(
    model: Llama,
    pairs: Dealer[Pair],
    micro_tokens: int,
    key: str,
    group: Group,
    directory: Path | None,
    processes: int = 1,
    layout: Layout = PADDED,
) -> Reference:
    """Without dropout, in the micro-batches of the first epoch, laid out as there."""
    model.eval()
    forward = partial(forward_logps, model, device=group.device, lay=layout.lay)
    steps = map(pairs.step, range(pairs.steps_per_epoch))
    parts = group.world_size * processes
    micros = (m for lines in steps for m in layout.cut(lines, micro_tokens, parts))
    return reference_logps(forward, micros, key, directory, group, processes)
