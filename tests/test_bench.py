"""The races in miniature: both sides do the same work. Nothing here looks at a clock's hand."""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import floor, llamacpp, sft_race, training_memory
from bench.__main__ import QUICK, main, only, races
from bench.dpo_race import BATCH, train_ours, train_theirs
from bench.race import Run, race
from bench.report import HEADER, Result, table, turns
from bench.sampling_race import grouping_race
from bench.shapes import CANDIDATES, JUDGE, TINY, Ending, pairs, random_weights, requests, rows
from bench.twin import transformers_twin
from llama import Llama
from llama.cache import Cache
from sampling import engine, generate

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs warn of much


def test_the_quick_program_writes_its_tables(tmp_path: Path, capsys, monkeypatch) -> None:
    seen: list[Result] = []

    def watched(program):
        for result in races(program):
            seen.append(result)
            yield result

    monkeypatch.setattr("bench.__main__.races", watched)
    assert main(["--quick", "--out", str(tmp_path / "B.md")]) == 0
    peers = [] if llamacpp.missing() else ["llama.cpp"]
    sampling = 2 * ["`transformers` generate", *peers, "grouping off"]
    training = ["TRL's DPOTrainer", "a loop around `transformers`"]
    assert [result.opponent for result in seen] == sampling + training
    assert [result.unit for result in seen] == ["tokens"] * len(sampling) + ["pairs", "tokens"]
    for result in seen:
        assert len(result.race.tried) == (1 if result.opponent in (*peers, "grouping off") else 2)
    for result in (result for result in seen if result.opponent != "grouping off"):
        assert result.race.ours.count == result.race.theirs.count > 0
        assert result.race.setting in result.race.tried
        assert {run.count for run in result.race.tried.values()} == {result.race.ours.count}
    text = (tmp_path / "B.md").read_text()
    assert table(seen, 1e9).splitlines()[0] in text and "--quick --out" in text
    assert all(f"| {result.name} against" in text for result in seen)
    assert capsys.readouterr().out.count("| workload |") == len(seen)


def test_a_part_can_be_raced_alone() -> None:
    assert only(QUICK, "training") == replace(QUICK, workloads={})
    assert only(QUICK, "sampling") == replace(QUICK, trainings={})


def test_the_table_is_a_table() -> None:
    outcome = race(lambda: Run(60, 2.0), {"a": lambda: Run(60, 6.0), "b": lambda: Run(60, 4.0)}, 2)
    lines = table([Result("rows", "tokens", "theirs", outcome, 600)], 1000.0).splitlines()
    assert {line.count("|") for line in lines} == {len(HEADER) + 1}
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    expected = ["rows against theirs", "60 tokens", "30.0", "15.0", "b", "**2.00 ×**", "100", "30%"]
    assert cells == expected


def test_the_best_run_counts_and_the_best_setting_goes_on() -> None:
    speeds, calls = (
        {"ours": iter([9.0, 3.0, 5.0]), "a": iter([8.0]), "b": iter([6.0, 7.0, 4.0])},
        [],
    )

    def runner(name: str):
        def run() -> Run:
            calls.append(name)
            return Run(12, next(speeds[name]))

        return run

    outcome = race(runner("ours"), {"a": runner("a"), "b": runner("b")}, rounds=3)
    assert calls == ["ours", "a", "b", "ours", "b", "ours", "b"]
    assert (outcome.ours.seconds, outcome.theirs.seconds, outcome.setting) == (3.0, 4.0, "b")
    assert outcome.ratio == 4 / 3
    assert turns([Result("rows", "tokens", "theirs", outcome, 600)]) == (
        "- rows against theirs: 1.3 / 2.0, 4.0 / 1.7, 2.4 / 3.0"
    )


@pytest.mark.parametrize("workload", [JUDGE, CANDIDATES], ids=lambda workload: workload.name)
def test_rows_are_ragged_and_end_of_their_own_accord(workload) -> None:
    asked = requests(workload, 0)
    prompts = [request.token_ids for request in asked]
    assert len({tuple(ids[: workload.template]) for ids in prompts}) == 1
    assert {min(map(len, prompts)), max(map(len, prompts))} == {workload.shortest, workload.longest}
    model = random_weights(Ending(TINY, workload.end), 0)
    samples = generate(model, asked[:16], workload.decoding(), seed=0)
    flat = [sample for several in samples for sample in several]
    assert all(sample.finished for sample in flat)
    assert len({len(sample.token_ids) for sample in flat}) > 8


def test_only_the_end_differs_from_the_plain_model() -> None:
    ending = random_weights(Ending(TINY, 50), 0)
    plain = Llama(TINY).eval()
    plain.load_state_dict(ending.state_dict())
    tokens = torch.randint(TINY.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ending(tokens), plain(tokens))


def test_both_trainers_take_the_same_steps() -> None:
    model, data = random_weights(Llama(TINY), 0), pairs(BATCH, 0)
    ours, twin, halved = deepcopy(model), transformers_twin(model), transformers_twin(model)
    train_ours(ours, data, 2, 0)
    train_theirs(twin, data, BATCH, 2, 0)
    train_theirs(halved, data, BATCH // 2, 2, 0)
    tokens = torch.tensor([pair.chosen.ids[:60] for pair in data])
    with torch.inference_mode():
        before, after = model(tokens), ours(tokens)
        moved = (after - before).abs().mean()
        assert moved > 1e-3
        assert (twin(tokens).logits - after).abs().mean() < moved / 50
        assert (halved(tokens).logits - after).abs().mean() < moved / 50


def test_the_losses_of_the_first_ten_steps_are_trls(tmp_path: Path) -> None:
    model, data = random_weights(Llama(TINY), 0), pairs(BATCH, 0)
    train_ours(deepcopy(model), data, 10, 0, tmp_path)
    ours = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    log = train_theirs(transformers_twin(model), data, BATCH // 2, 10, 0, "steps").state.log_history
    theirs = [line["loss"] for line in log if "loss" in line]
    assert [line["dpo_loss"] for line in ours] == pytest.approx(theirs, abs=1e-4)
    assert len(theirs) == 10 and theirs[0] - theirs[-1] > 0.05  # it does learn something


def test_the_loop_around_transformers_takes_our_steps() -> None:
    model, data = random_weights(Llama(TINY), 0), rows(sft_race.BATCH, 0)
    ours, twin, halved = deepcopy(model), transformers_twin(model), transformers_twin(model)
    sft_race.train_ours(ours, data, 3, 0)
    sft_race.train_theirs(twin, data, sft_race.BATCH, 3, 0)
    sft_race.train_theirs(halved, data, sft_race.BATCH // 2, 3, 0)
    for mine, *others, old in zip(*map(weights, (ours, twin, halved, model)), strict=True):
        moved = (mine - old).abs().mean()
        assert all((other - mine).abs().mean() < moved / 50 for other in others)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """In an order that does not depend on names."""
    return sorted(model.parameters(), key=lambda weight: (weight.shape, weight.sum().item()))


def test_memory_is_that_of_all_processes() -> None:
    code = (
        "import multiprocessing, time\n"
        "held = b'x' * 30_000_000\n"
        "def child():\n    own = b'y' * 50_000_000; print('ready', flush=True); time.sleep(60)\n"
        "multiprocessing.get_context('fork').Process(target=child, daemon=True).start()\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()
        both = training_memory.in_use(parent.pid)
        parent.kill()
    assert 80e6 < both < 110e6  # what both share is there once
    assert training_memory.in_use(parent.pid) == 0


@pytest.mark.parametrize("sides", [training_memory.THEIRS, training_memory.OURS])
def test_nothing_is_imported_while_memory_is_looked_at(sides: dict[str, tuple]) -> None:
    code = (
        "import io, sys\n"
        "from bench import training_memory\n"
        "class Told(io.StringIO):\n"
        "    def readline(self): self.there = set(sys.modules)\n"
        "sys.stdin = Told()\n"
        "training_memory.MODELS = {'little': (training_memory.SMALL, 40)}\n"
        f"training_memory.train({next(iter(sides))!r}, 'little')\n"
        "print(len(sys.stdin.there), set(sys.modules) - sys.stdin.there)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ready, seconds, modules = told.stdout.splitlines()[-3:]
    assert ready == "ready" and float(seconds) > 0
    count, late = modules.split(" ", 1)
    assert int(count) > 1000 and late == "set()"


def test_the_floor_counts_what_torch_counts() -> None:
    model, T = random_weights(Llama(TINY), 0), 40
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model(torch.zeros(1, T, dtype=torch.int64))
    # plain products: all T · T of them are made, though a causal mask then hides a half
    assert counter.get_total_flops() == floor.forward(TINY, T, T * T, T, T * T)
    # of a token without logits the last block needs nothing but key and value
    kv = 2 * 2 * TINY.dim * TINY.n_kv_heads * TINY.head_dim
    block = (counter.get_total_flops() // T - 2 * TINY.dim * TINY.vocab_size) // TINY.n_layers
    alone = floor.forward(TINY, 1, 0, 1, 0)
    assert alone - floor.forward(TINY, 1, 0, 0, 0) == 2 * TINY.dim * TINY.vocab_size + (
        block - 4 * TINY.dim * T - kv
    )


def test_each_prompt_is_counted_once() -> None:
    P, N = 30, 11
    prompt = floor.forward(TINY, P, P * (P + 1) // 2, 1, P)
    seen = sum(range(P + 1, P + N))
    sample = floor.forward(TINY, N - 1, seen, N - 1, seen)
    assert floor.sampling(TINY, [(P, [N])]) == prompt + sample
    assert floor.sampling(TINY, [(P, [N, N])]) == prompt + 2 * sample


def test_a_pair_costs_its_tokens_once() -> None:
    [pair] = pairs(1, 0)
    P = pair.chosen.is_response.index(True)
    C, R = len(pair.chosen.ids), len(pair.rejected.ids)
    seen = sum(range(C + 1)) + sum(range(P + 1, R + 1))
    by_scored = sum(range(P, C)) + sum(range(P, R))
    expected = 3 * floor.forward(TINY, C + R - P, seen, C + R - 2 * P, by_scored)
    assert floor.preferences(TINY, [pair]) == expected


def test_a_row_costs_its_logits_where_it_is_trained_on() -> None:
    [row] = rows(1, 0)
    P, T = row.is_response.index(True), len(row.ids)
    expected = 3 * floor.forward(TINY, T, sum(range(T + 1)), T - P, sum(range(P, T)))
    assert floor.instructions(TINY, [row]) == expected


def test_grouping_off_is_off_and_then_on_again(monkeypatch) -> None:
    seen = []

    def watched(model, asked, decoding, *, seed):
        seen.append((engine.LEAST_SHARED, {request.n for request in asked}, len(asked)))
        return generate(model, asked, decoding, seed=seed)

    monkeypatch.setattr("bench.sampling_race.generate", watched)
    few, least = replace(JUDGE, prompts=3), engine.LEAST_SHARED
    grouping_race(few, 1, 0)
    assert (least, {3}, 3) in seen and (sys.maxsize, {1}, 9) in seen
    assert least == engine.LEAST_SHARED


@torch.inference_mode()
def test_eos_is_as_likely_whatever_the_vocabulary() -> None:
    chances = []
    for size in (TINY.vocab_size, 40 * TINY.vocab_size):
        model = random_weights(Ending(replace(TINY, vocab_size=size), 30), 0)
        tokens = torch.randint(3, size, (64, 30), generator=torch.Generator().manual_seed(0))
        cache = Cache(model.config, torch.float32, torch.device("cpu"))
        cohort = cache.admit(torch.full((64,), 30), torch.ones(64, dtype=torch.int64), 2)
        model(tokens, cohort.prefill(slice(0, 64), 30))
        logits = model(tokens[:, -1:], cache.decode())
        chances.append(logits.softmax(-1)[..., 2].mean().item())
    assert chances[0] == pytest.approx(chances[1], rel=0.1)
