"""Teams: several ranks sample from one model together what one process samples alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_llama_streaming import WIDE, bytes_read
from tiny_llama import GROUPED, same_weights, tiny_model, tiny_tokenizer

import llama
from llama import PRESETS, LlamaConfig
from llama.meta import write_meta
from llama.parallel import Group, PeerLost, start
from llama.split import Split, parameter_count, sizes
from llama.team import SummedLinear, Team, join
from llama.weights import held, read_checkpoint, replicate
from sampling import Decoding, Request, engine
from sampling.complete import sample_on_ranks

UNEVEN = replace(GROUPED, vocab_size=401, ffn_dim=37)  # the last rank holds less
SHAPES = {
    "grouped": UNEVEN,  # on four ranks two hold the same key-value head
    "multi-head": replace(UNEVEN, n_kv_heads=4),
    "tied": replace(UNEVEN, tie_embeddings=True),
}
HEADER = [1, *range(5, 25)]  # what all prompts begin with
ALONE = Group(0, 1, torch.device("cpu"), 1.0)
STOPS = frozenset(range(2, 400, 15))
GREEDY, DRAWN = (Decoding(t, 0.9, 12, STOPS, logps=True) for t in (0.0, 1.0))
Made = list[list[dict[str, Any]]]


def written(model: llama.Llama, group: Group | Team, decoding: Decoding) -> Made:
    """Samples of seven requests, more than there are slots for."""
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 400, (2 + 3 * i,), generator=generator).tolist() for i in range(7)]
    requests = [Request(f"r{i}", HEADER + text, 2) for i, text in enumerate(texts)]
    samples = sample_on_ranks(
        model, requests, decoding, seed=3, group=group, slots=5, description="team", shown=False
    )
    return [
        [{"ids": s.token_ids, "finished": s.finished, "logps": s.logps} for s in several]
        for several in samples
    ]


def everything(model: llama.Llama, group: Group | Team) -> Iterator[Made]:
    """Greedy and drawn, in cohorts and in lanes, with the GPU's layout of the weights too."""
    usual = engine._in_lanes
    for lanes, decoding in product((False, True), (GREEDY, DRAWN)):
        engine._in_lanes = lambda *_, lanes=lanes: lanes
        yield written(model, group, decoding)
    engine._in_lanes = usual


def sample_together(directory: str, cases: list[tuple[str, int]]) -> None:
    """Some shapes in teams of some size; then what a check must notice."""
    group, root = start(timeout_s=60), Path(directory)
    for name, size in cases:
        team = join(group, size)
        model, _ = llama.load_split(root / name, team)
        check_weights(model, root / name, size)
        check_replica(root / name, team)
        file = root / f"{name}.{group.world_size}.{size}.{group.rank}.json"
        file.write_text(json.dumps(list(everything(model, team))))
    model, _ = llama.load_split(root / "grouped", team)
    model.layers[1].ffn.w2.__class__ = torch.nn.Linear  # it no longer asks the others
    (root / f"broken.{group.rank}.json").write_text(json.dumps(written(model, team, GREEDY)))
    group.stop()


def check_weights(model: llama.Llama, path: Path, size: int) -> None:
    """A rank holds just its parts, bit for bit."""
    whole, _ = llama.load(path)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name][model.split.part(name)]), name
    assert sum(map(torch.numel, model.parameters())) <= parameter_count(whole.config, size)
    assert not any(weight.requires_grad for weight in model.parameters())


def check_replica(path: Path, team: Team) -> None:
    """From a model that all ranks hold cut, a team's parts are what its files would give."""
    for dtype in (torch.float32, torch.bfloat16):
        trained, _ = llama.load_sharded(path, team.group, dtype)
        found, expected = replicate(trained, team, dtype), llama.load_split(path, team, dtype)[0]
        assert type(found) is type(expected)
        for (name, weight), other in zip(
            found.state_dict().items(), expected.state_dict().values(), strict=True
        ):
            assert weight.dtype == dtype and torch.equal(weight, other), name


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("team")
    for name, config in SHAPES.items():
        llama.save(tiny_model(config), tiny_tokenizer(), root / name)
    return root


def same(made: list[Made], alone: list[Made]) -> bool:
    """The same tokens, and log-probabilities but for their rounding."""
    ours, theirs = (
        [sample for way in ways for several in way for sample in several] for ways in (made, alone)
    )
    return all(
        a["ids"] == b["ids"]
        and a["finished"] == b["finished"]
        and a["logps"] == pytest.approx(b["logps"], abs=1e-4)
        for a, b in zip(ours, theirs, strict=True)
    )


CASES = {2: [(name, 2) for name in SHAPES], 4: [("grouped", 4), ("multi-head", 2)]}


@pytest.mark.parametrize("ranks", CASES)
def test_a_team_writes_what_one_process_writes(checkpoints, ranks: int) -> None:
    """One team of two, one of four, two of two."""
    codes = run_ranks(sample_together, ranks, str(checkpoints), CASES[ranks], limit_s=240)
    assert codes == [0] * ranks
    for name, size in CASES[ranks]:
        alone = list(everything(llama.load(checkpoints / name)[0], ALONE))
        assert len({len(sample["ids"]) for several in alone[1] for sample in several}) > 3
        for rank in range(ranks):
            file = checkpoints / f"{name}.{ranks}.{size}.{rank}.json"
            assert same(json.loads(file.read_text()), alone), (name, size, rank)
    broken = json.loads((checkpoints / "broken.0.json").read_text())
    alone = written(llama.load(checkpoints / "grouped")[0], ALONE, GREEDY)
    assert not same([broken], [alone])  # negative control


# What each rank reads


def read_part(directory: str) -> None:
    group, root = start(timeout_s=60), Path(directory)
    team = join(group, 2)
    llama.load_split(root / "small", team)  # imports what there is to import
    before = bytes_read()
    model, _ = llama.load_split(root / "whole", team)
    read = bytes_read() - before
    holds = sum(weight.nbytes for weight in model.state_dict().values())
    (root / f"{group.rank}.json").write_text(json.dumps({"read": read, "holds": holds}))
    group.stop()


def test_a_rank_reads_its_part_and_no_more(tmp_path) -> None:
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "small")
    llama.save(tiny_model(WIDE), tiny_tokenizer(), tmp_path / "whole")
    assert run_ranks(read_part, 2, str(tmp_path)) == [0, 0]
    files = list((tmp_path / "whole").iterdir())
    around = sum(file.stat().st_size for file in files if file.suffix != ".safetensors")
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["holds"] <= found["read"] < found["holds"] + around + 20_000
        assert found["holds"] == parameter_count(WIDE, 2) * 4 < 0.52 * WIDE.parameter_count * 4


def whole_again(config: LlamaConfig, size: int, read: Any) -> dict[str, torch.Tensor]:
    """A model's weights out of the parts that `size` ranks would read."""
    state = tiny_model(config).state_dict()
    whole = {name: torch.full_like(weight, torch.nan) for name, weight in state.items()}
    for split in (Split(config, rank, size) for rank in range(size)):
        for name, weight in whole.items():
            weight[split.part(name)] = read(name, split.part(name), None)
    return whole


@pytest.mark.parametrize("name", SHAPES)
def test_the_parts_are_the_checkpoint_bit_for_bit(checkpoints, tmp_path, name: str) -> None:
    """Hugging Face's layout and Meta's, in more parts and in fewer than there are ranks."""
    config, state = SHAPES[name], tiny_model(SHAPES[name]).state_dict()
    places = [checkpoints / name]
    if not config.tie_embeddings:
        even = replace(config, vocab_size=400, ffn_dim=36)
        config, state, places = even, tiny_model(even).state_dict(), [tmp_path / "hf"]
        llama.save(tiny_model(even), tiny_tokenizer(), tmp_path / "hf")
        for parts in (1, 2):
            write_meta(tmp_path / f"{parts}", held(state), even, tiny_tokenizer(), parts)
            places.append(tmp_path / f"{parts}")
    for place, size in product(places, (1, 2, 4)):
        read = read_checkpoint(place).weights.read
        again = whole_again(config, size, read)
        assert all(torch.equal(again[key], state[key]) for key in state), (place, size)


def test_a_team_of_one_has_the_whole(checkpoints) -> None:
    model, _ = llama.load_split(checkpoints / "grouped", join(ALONE, 1))
    assert type(model) is llama.Llama
    assert same_weights(model, tiny_model(UNEVEN))


# Arithmetic


@pytest.mark.parametrize("config", [*PRESETS.values(), *SHAPES.values()], ids=str)
def test_every_query_head_has_its_key_value_head_beside_it(config: LlamaConfig) -> None:
    queries = config.n_heads // config.n_kv_heads  # of one key-value head
    for size in sizes(config, config.n_heads):
        for rank in range(size):
            split = Split(config, rank, size)
            own, width = split.config, config.head_dim
            assert own.head_dim == width and own.n_heads * size == config.n_heads
            first = split.part("layers.0.attention.wq.weight")[0].start // width
            for head in range(own.n_heads):
                local = split.kv_heads.start + head // (own.n_heads // own.n_kv_heads)
                assert local == (first + head) // queries
    assert parameter_count(config, 1) == config.parameter_count


def test_how_many_may_be_a_team() -> None:
    assert sizes(PRESETS["70B"], 8) == [1, 2, 4, 8]
    assert sizes(PRESETS["70B"], 6) == [1, 2]
    assert sizes(PRESETS["13B"], 40) == [1, 2, 4, 5, 8, 10, 20, 40]
    assert sizes(replace(PRESETS["70B"], n_kv_heads=4), 8) == [1, 2, 4, 8]  # held twice
    with pytest.raises(ValueError, match=r"32 heads .* to 3 ranks: --sample-tp .* can be 1, 2, 4"):
        Split(PRESETS["7B"], 0, 3)
    two_machines = Group(0, 4, torch.device("cpu"), 1.0, machine_ranks=2)
    for size in (0, 4, 3):
        with pytest.raises(ValueError, match=rf"sample_tp\) is {size}, and a machine's 2 ranks"):
            join(two_machines, size)


def test_teams_are_dealt_work_as_ranks_are() -> None:
    """Six ranks in teams of two: each team has its third, once."""
    rows = list(range(10))
    parts = [Team(Group(r, 6, torch.device("cpu"), 1.0), 2).slice(rows) for r in range(6)]
    assert parts[::2] == parts[1::2] == [rows[0::3], rows[1::3], rows[2::3]]


def test_out_of_memory_is_not_tried_again_by_one_of_a_team(monkeypatch) -> None:
    tried = []

    def full(model: Any, requests: Any, decoding: Any, seed: int, slots: int, *rest: Any) -> None:
        tried.append(slots)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(engine, "_run", full)
    ends = ((True, [4], torch.OutOfMemoryError), (False, [4, 2, 1], ValueError))
    for together, most, error in ends:
        how = partial(engine.generate, tiny_model(), [Request("a", [1])], GREEDY, seed=0)
        with pytest.raises(error, match="no room"):
            how(slots=4, processes=1, together=together)
        assert tried == most
        tried.clear()


def lose_a_member(directory: str) -> None:
    group = start(timeout_s=60)
    team = join(group, 2)
    model, _ = llama.load_split(Path(directory) / "grouped", team)
    group.barrier()
    if group.rank == 1:
        os._exit(9)
    with pytest.raises(PeerLost, match="team: rank 0 of 2 lost touch"):
        written(model, team, GREEDY)
    assert isinstance(model.layers[0].ffn.w2, SummedLinear)
    os._exit(3)


def test_a_lost_member_is_reported(checkpoints) -> None:
    assert run_ranks(lose_a_member, 2, str(checkpoints)) == [3, 9]
