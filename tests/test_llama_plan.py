"""The memory plan: what the graph really keeps, to the byte; laws; a process measured; the face."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.memory import in_fresh_processes
from dpo import Pair, Row, TrainSettings
from dpo.blocks import KEPT
from dpo.descent import _training, forward_logps
from dpo.lines import Line, pack, pad, pair_line, row_line
from dpo.logprobs import CHUNK_LOGITS
from llama import PRESETS, Llama, LlamaConfig
from llama.__main__ import main
from llama.lora import Lora, attach, begin
from llama.plan import (
    Training,
    kept_by_block,
    kv_bytes,
    sampling,
    saved_by_block,
    slots_for,
    training,
)
from loop.memory import OURS, advice, needs, sampling_sizes, table, team_size, train_size
from loop.options import parse_arguments

SMALL = LlamaConfig(
    vocab_size=400, dim=64, n_layers=2, n_heads=4, n_kv_heads=4, ffn_dim=90, max_seq_len=96
)
SHAPES = {"multi-head": SMALL, "grouped": replace(SMALL, n_kv_heads=2)}
ALONE = Training(1, 4 * 48, 4 * 48, 4 * 47, 4, False, "none", True, CHUNK_LOGITS)
WAYS = {
    "fp32": ALONE,
    "dropout": replace(ALONE, dropout=True),
    "bf16": replace(ALONE, width=2),
    "pairs": replace(ALONE, attended=4 * 64),  # of 16 shared tokens and twice 16 others
    "pairs in bf16": replace(ALONE, attended=4 * 64, width=2),
}
FEW = Lora(4, 8.0)
ADAPTERS = {
    "adapters": replace(ALONE, lora=FEW),
    "adapters, dropout": replace(ALONE, lora=FEW, dropout=True),
    "adapters in bf16": replace(ALONE, lora=FEW, width=2),
    "adapters, pairs": replace(ALONE, lora=FEW, attended=4 * 64),
    "adapters, pairs in bf16": replace(ALONE, lora=FEW, attended=4 * 64, width=2),
    "some": replace(ALONE, lora=Lora(4, 8.0, ("wv", "w2"))),
    "one": replace(ALONE, lora=Lora(4, 8.0, ("w1",)), attended=4 * 64),
    "elsewhere": replace(ALONE, lora=Lora(4, 8.0, ("wq", "wo"))),
}


def model_and_lines(config: LlamaConfig, how: Training) -> tuple[Llama, list[Line]]:
    model = Llama(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model = model.to({4: torch.float32, 2: torch.bfloat16}[how.width])
    if how.lora is not None:
        attach(model, how.lora)
        begin(model, "")
    if how.attended == how.tokens:
        row = Row([3] * 48, [False] + [True] * 47)
        return model, [row_line(row, i, 96) for i in range(4)]
    mask = [False] * 16 + [True] * 16
    two = Pair(*(Row([3] * 16 + [answer] * 16, mask) for answer in (4, 5)))
    return model, [pair_line(two, i, 96) for i in range(4)]


def kept_bytes(config: LlamaConfig, how: Training, lay: Any = pad) -> int:
    """What a forward pass over four lines of 48 tokens keeps for the backward pass, weights aside;
    counted where autograd saves it.
    """
    model, lines = model_and_lines(config, how)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # alive, so that no address comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    settings = TrainSettings(1e-3, dropout=0.1 * how.dropout)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with _training(model, settings), hooks:
        forward_logps(model, lines, torch.device("cpu"), lay)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


@pytest.mark.parametrize("how", [*WAYS.values(), *ADAPTERS.values()], ids=[*WAYS, *ADAPTERS])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_block_keeps_what_the_plan_says_to_the_byte(config: LlamaConfig, how: Training) -> None:
    """Two blocks more make the difference; what comes before and after the blocks cancels out."""
    deeper = replace(config, n_layers=config.n_layers + 2)
    more = kept_bytes(deeper, how) - kept_bytes(config, how)
    assert more == 2 * saved_by_block(config, how)


@pytest.mark.parametrize("name", ["fp32", "bf16", "pairs", "pairs in bf16", *ADAPTERS])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_block_keeps_no_more_of_packed_lines_and_of_pairs_less(
    config: LlamaConfig, name: str
) -> None:
    """To the byte: one behind the other, a shared prompt is there once, for attention too."""
    how, deeper = (WAYS | ADAPTERS)[name], replace(config, n_layers=config.n_layers + 2)
    more = kept_bytes(deeper, how, pack) - kept_bytes(config, how, pack)
    assert more == 2 * saved_by_block(config, replace(how, attended=how.tokens))


SELECTIVE = ("adapters", "adapters in bf16", "adapters, pairs", "some")


class Products(TorchDispatchMode):
    """Adds up the bytes of what selective recomputation keeps."""

    total = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
        out = operation(*args, **(kw or {}))
        if operation in KEPT:
            made = [x for x in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(x)]
            self.total += sum(tensor.nbytes for tensor in made)
        return out


@pytest.mark.parametrize("lay", [pad, pack])
@pytest.mark.parametrize("name", ["fp32", "bf16", "pairs", "pairs in bf16", *SELECTIVE])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_selective_keeps_an_input_and_products_to_the_byte(
    config: LlamaConfig, name: str, lay: Any
) -> None:
    how, found = replace((WAYS | ADAPTERS)[name], recompute="selective"), []
    for n_layers in (2, 4):
        model, lines = model_and_lines(replace(config, n_layers=n_layers), how)
        with Products() as products, torch.no_grad():
            forward_logps(model, lines, torch.device("cpu"), lay)
        found.append(products.total)
    if lay is pack:
        how = replace(how, attended=how.tokens)
    inputs = how.tokens * config.dim * how.width
    assert found[1] - found[0] == 2 * (kept_by_block(config, how) - inputs)
    assert kept_by_block(config, replace(how, recompute="full")) == inputs
    assert inputs < kept_by_block(config, how) < saved_by_block(config, how)


@pytest.mark.parametrize("phase", ["DPO", "DPO, adapters"])
def test_the_tiny_models_training_takes_what_was_planned(phase: str) -> None:
    """In a process of its own; `python -m bench.memory` does so for all phases and for 134M."""
    planned, measured = in_fresh_processes("tiny", phase)
    assert measured > 100e6
    assert planned == pytest.approx(measured, rel=0.1)


def test_states_are_those_of_adam_in_fp32() -> None:
    count = PRESETS["7B"].parameter_count
    need = training(PRESETS["7B"], ALONE)
    states = [need.parts[name] for name in ("weights", "gradients", "optimizer", "gathered")]
    assert states == [4 * count, 4 * count, 8 * count, 0]
    for ranks in (2, 8, 64):
        parts = training(PRESETS["7B"], replace(ALONE, ranks=ranks)).parts
        assert parts["weights"] == -(-count // ranks) * 4 and parts["gathered"] > 0


def test_beside_frozen_weights_only_adapters_have_states() -> None:
    config, lora = PRESETS["7B"], Lora(16, 16.0)
    learning = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    need = training(config, replace(ALONE, lora=lora, width=2)).parts
    assert need["weights"] == 2 * config.parameter_count + 4 * learning
    assert need["gradients"] * 2 == need["optimizer"] == 8 * learning and need["gathered"] == 0
    cut = training(config, replace(ALONE, lora=lora, width=2, ranks=8)).parts
    assert cut["weights"] == need["weights"] / 8 and cut["gathered"] > 0


@pytest.mark.parametrize(("name", "ranks", "card"), [("7B", 1, 24), ("70B", 8, 80)])
def test_with_adapters_7b_fits_a_small_card_and_70b_one_machine(
    name: str, ranks: int, card: int
) -> None:
    words = [f"--set={part}.{how}" for part in ("sft", "dpo") for how in ("recompute=full",)]
    few = [f"--set={part}.lora_rank=16" for part in ("sft", "dpo")]
    for flags, fits in ((words, False), (words + few, True)):
        found = needs(parse_arguments(["--preset", "paper", *flags]), PRESETS[name], ranks)
        for phase in ("SFT", "DPO"):
            assert (found[phase].total <= OURS * card * 2**30) == fits


def test_narrow_moments_and_offload_leave_their_part_out() -> None:
    count = PRESETS["7B"].parameter_count
    narrow = training(PRESETS["7B"], replace(ALONE, moment=2))
    assert narrow.parts["optimizer"] == 4 * count and narrow.parts["weights"] == 4 * count
    waiting = training(PRESETS["7B"], replace(ALONE, offload=True)).parts
    assert waiting["weights"] == waiting["gradients"] == waiting["optimizer"] == 0
    assert waiting["gathered"] > 0


def test_a_copy_on_each_machine_needs_more_than_one_in_all(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    hybrid = parse_arguments(["--set", "machine.shard=machine"])
    one = parse_arguments([])
    assert needs(one, SMALL, 4)["SFT"] == needs(hybrid, SMALL, 4)["SFT"]
    found, shared = (needs(how, SMALL, 16)["SFT"].parts["optimizer"] for how in (hybrid, one))
    assert found == 4 * shared


def test_recomputation_and_smaller_passes_save_memory() -> None:
    config = PRESETS["13B"]
    much = replace(ALONE, tokens=8192, attended=8192, scored=8192, ranks=8, width=2)
    half = replace(much, tokens=4096, attended=4096, scored=4096)
    assert (
        training(config, replace(much, recompute="full")).total < 0.5 * training(config, much).total
    )
    assert (
        training(config, half).parts["activations"] * 2
        == (training(config, much).parts["activations"])
    )


def test_keys_and_values_are_counted_as_the_cache_holds_them() -> None:
    assert kv_bytes(PRESETS["7B"], 2) == 512 * 1024  # the well-known half megabyte a token
    assert kv_bytes(PRESETS["70B"], 2) == 320 * 1024  # an eighth as many heads, 80 layers
    settings = parse_arguments(["--preset", "world"])
    for size in sampling_sizes(settings, SMALL):
        assert size.prompt_tokens + size.new_tokens <= SMALL.max_seq_len
        once = replace(size, samples_a_prompt=1)
        assert sampling(SMALL, once).total >= sampling(SMALL, size).total


def test_a_small_model_writes_more_samples_side_by_side() -> None:
    small = replace(PRESETS["7B"], dim=128, n_heads=4, n_kv_heads=4, n_layers=4)
    assert slots_for(small, 4) == 2048 and slots_for(replace(small, n_layers=16), 4) == 2048
    assert slots_for(replace(small, n_layers=17), 4) == slots_for(PRESETS["7B"], 2) == 1024
    for choice, slots in (("none", 2048), ("300", 300)):
        settings = parse_arguments(["--preset", "world", "--set", f"machine.slots={choice}"])
        assert {size.slots for size in sampling_sizes(settings, small)} == {slots}
        assert f"{slots} samples at a time" in list(table(settings, small, 1, 2**40))[-1]


def test_no_pass_is_smaller_than_one_text() -> None:
    settings = parse_arguments(["--preset", "paper", "--set", "sft.micro_tokens=1"])
    assert train_size(settings, settings.sft, SMALL, 4, pairs=False).tokens == 96
    assert train_size(settings, settings.dpo, SMALL, 16, pairs=True).tokens == 144


@pytest.mark.parametrize(("name", "ranks"), [("7B", 1), ("7B", 4), ("13B", 8), ("70B", 16)])
def test_what_is_advised_fits(name: str, ranks: int) -> None:
    """The advice, taken word for word, gives a plan that fits; and there is none where all fits."""
    memory, config = 80 * 2**30, PRESETS[name]
    settings = parse_arguments(["--preset", "paper"])
    said = list(advice(settings, config, ranks, memory))
    found = needs(settings, config, ranks, memory)
    too_large = [phase for phase in found if found[phase].total > OURS * memory]
    assert too_large and [line.partition(":")[0] for line in said] == too_large
    for line in said:
        phase, _, rest = line.partition(":")
        words = [word for change in re.findall(r"--set (\S+?)(?:[,:]|$)", rest)
                 for word in ("--set", change)]  # fmt: skip
        more = re.search(r"(\d+) ranks", rest)
        changed = parse_arguments(["--preset", "paper", *words])
        need = needs(changed, config, int(more[1]) if more else ranks, memory)[phase]
        assert need.total <= OURS * memory
    assert not list(advice(settings, config, ranks, 1e15))


def test_a_model_too_large_for_a_rank_is_sampled_from_by_several() -> None:
    """70B on eight of 80 GB; a replica where the weights leave half of the card."""
    settings, config, memory = parse_arguments(["--preset", "paper"]), PRESETS["70B"], 80 * 2**30
    assert needs(settings, config, 8)["sampling"].parts["weights"] > memory  # a replica
    *_, said = table(settings, config, 8, memory)
    assert "fits, a model on 4 ranks, 128 samples at a time" in said
    part = needs(settings, config, 8, memory)["sampling"].parts["weights"]
    assert part == pytest.approx(2 * config.parameter_count / 4, rel=1e-3)
    for name, team in (("7B", 1), ("13B", 1), ("70B", 4)):
        assert team_size(PRESETS[name], 2, 8, memory, None) == team
    assert team_size(config, 2, 8, 24 * 2**30, None) == 8  # even all of them leave little room
    assert team_size(config, 2, 1, memory, None) == 1
    [said] = [line for line in advice(settings, config, 1, memory) if line.startswith("sampling")]
    assert "machine.sample_tp=4, on machines of 4 ranks" in said


def test_the_face_tells_each_phase(capsys, tmp_path) -> None:
    assert main(["plan", "--model", "7B", "--gpus", "8", "--gpu-memory", "80G"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("7B: 6.74 billion weights, 8 ranks, bfloat16")
    assert [line.split()[0] for line in out[1:4]] == ["SFT", "DPO", "sampling"]
    assert "fits: weights 3.14" in out[1] and "keys and values" in out[3]
    for arguments, message in (
        (["--model", str(tmp_path)], "no checkpoint directory"),
        (["--model", "7B", "--gpu-memory", "80"], "such as 80G"),
        (["--model", "7B", "--gpus", "0"], "--gpus 0"),
        (["--model", "7B", "--gpus", "2", "--set", "machine.sample_tp=4"], "teams of 4"),
        (["--model", "7B", "--gpus", "3", "--set", "machine.sample_tp=3"], "to 3 ranks"),
        (["--model", "7B", "--set", "sft.recompte=true"], "did you mean sft.recompute"),
    ):
        assert main(["plan", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    """`python -m llama plan --model 7B | head -1`"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "llama", "plan", "--model", "7B"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
