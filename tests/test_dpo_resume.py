"""A killed training goes on to the same bytes; what cannot be gone on from is refused."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from dpo_runs import Killed, dpo, files, kill_before, rows, sft, weights
from tiny_llama import tiny_model

from dpo import Row, checkpoint, descent, forget
from dpo.checkpoint import FILES, check_bytes, find_training
from dpo.trainer import PROBES
from llama import Llama, fingerprint
from llama.parallel import shard, start


@pytest.mark.parametrize("train", [sft, dpo])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any
) -> None:
    changes = {"epochs": 2, "dropout": 0.2, "replay_weight": 0.1 if train is dpo else 0.0}
    whole = tiny_model()
    metrics = train(whole, tmp_path / "whole", **changes)
    for killed_at in (1, 2, 5, 7):
        directory = tmp_path / str(killed_at)
        with monkeypatch.context() as patch:
            kill_before(patch, killed_at)
            with pytest.raises(Killed):
                train(tiny_model(), directory, **changes)
        model = tiny_model()
        again = train(model, directory, **changes)
        assert fingerprint(model) == fingerprint(whole)
        assert files(directory) == files(tmp_path / "whole")
        assert again["loss"] == metrics["loss"]
        assert again["tokens"] < metrics["tokens"] or killed_at == 1


def test_a_run_killed_at_any_file_operation_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama import files as disk

    dpo(tiny_model(), tmp_path / "whole")

    def killed_after(operations: int, directory: Path) -> bool:
        left = operations

        def dying(operation: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(disk, "before", dying)
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead tidy nothing up
            try:
                dpo(tiny_model(), directory)
            except Killed:
                return True
        return False

    operations = 0
    while killed_after(operations, tmp_path / str(operations)):
        directory = tmp_path / str(operations)
        dpo(tiny_model(), directory)
        assert files(directory) == files(tmp_path / "whole"), f"killed after {operations}"
        operations += 1
    assert operations > 6


def test_resume_needs_the_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an optimizer that is saved and not loaded shows."""
    sft(tiny_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_before(patch, 4)
        with pytest.raises(Killed):
            sft(tiny_model(), tmp_path / "killed")
    usual = descent.load_training

    def weights_only(directory: Path, model: Llama, optimizer: Any, updates: int) -> None:
        usual(directory, model, optimizer, updates)
        optimizer.state.clear()

    monkeypatch.setattr(descent, "load_training", weights_only)
    sft(tiny_model(), tmp_path / "killed")
    assert files(tmp_path / "killed") != files(tmp_path / "whole")


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first, again = tiny_model(), tiny_model()
    metrics = sft(first, tmp_path)
    before = files(tmp_path)
    assert sft(again, tmp_path)["loss"] == metrics["loss"]
    assert fingerprint(again) == fingerprint(first) and files(tmp_path) == before
    forget(tmp_path, start())
    assert list(files(tmp_path)) == ["train.jsonl"]


def test_without_a_directory_nothing_is_kept(tmp_path: Path) -> None:
    kept, free = tiny_model(), tiny_model()
    sft(kept, tmp_path)
    sft(free)
    assert fingerprint(kept) == fingerprint(free)


def test_another_run_in_the_directory_is_refused(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=r"another training run: learning_rate was 0.003, is 0.1"):
        sft(tiny_model(), tmp_path, learning_rate=0.1)
    with pytest.raises(ValueError, match="another training run: model was"):
        sft(tiny_model(seed=1), tmp_path)
    with pytest.raises(ValueError, match="another training run: data was 24 rows"):
        sft(tiny_model(), tmp_path, rows(24, seed=1))
    with pytest.raises(ValueError, match="another training run: beta was 0.1, is 0.2; data"):
        dpo(tiny_model(), tmp_path, beta=0.2)


def test_a_run_goes_on_in_the_type_that_it_was_begun_in(tmp_path: Path) -> None:
    def in_bf16() -> Any:
        return shard(tiny_model(), start(), torch.bfloat16)

    sft(tiny_model(), tmp_path / "fp32")
    sft(in_bf16(), tmp_path / "bf16")
    with pytest.raises(ValueError, match=r"model was (\w+), is \1 in torch.bfloat16"):
        sft(in_bf16(), tmp_path / "fp32")
    with pytest.raises(ValueError, match=r"model was (\w+) in torch.bfloat16, is \1$"):
        sft(tiny_model(), tmp_path / "bf16")
    sft(in_bf16(), tmp_path / "bf16")
    start().stop()


class Lazy(Sequence[Row]):
    """Rows that are made when they are read."""

    def __init__(self, made: list[Row]) -> None:
        self.made, self.read = made, 0

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return self.made[index]


def test_data_are_known_again_by_all_rows_or_by_some_if_they_are_lazy(tmp_path: Path) -> None:
    data = rows(100)
    other = [*data[:50], rows(1, seed=1)[0], *data[51:]]
    once: dict[str, Any] = {"max_steps": 2}  # of the 25 that are dealt at once
    sft(tiny_model(), tmp_path / "list", data, **once)
    with pytest.raises(ValueError, match="another training run: data was 100 rows"):
        sft(tiny_model(), tmp_path / "list", other, **once)
    lazy = Lazy(data)
    sft(tiny_model(), tmp_path / "lazy", lazy, **once)
    assert lazy.read == PROBES + len(data)
    with pytest.raises(ValueError, match="another training run: data was 100 rows"):
        sft(tiny_model(), tmp_path / "lazy", Lazy(other[50:] + other[:50]), **once)


def test_memory_and_saving_may_be_set_anew_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tiny_model(), tiny_model()
    sft(whole)
    with monkeypatch.context() as patch:
        kill_before(patch, 4)
        with pytest.raises(Killed):
            sft(tiny_model(), tmp_path)
    sft(resumed, tmp_path, micro_tokens=32, save_every=50)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_a_damaged_frozen_run_is_refused(tmp_path: Path, cut: int) -> None:
    sft(tiny_model(), tmp_path)
    for name in FILES:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=f"{FILES[0]}.*{FILES[1]}|{FILES[1]}.*{FILES[0]}"):
        sft(tiny_model(), tmp_path)


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(bit // 8)
        (byte,) = stream.read(1)
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def test_any_flipped_bit_of_a_frozen_run_is_noticed(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path, max_steps=1)
    file, draw = tmp_path / FILES[0], Random(0)
    bits = 8 * file.stat().st_size
    check_bytes(file)
    begin, end = range(8 * 64), range(bits - 16, bits)  # the CRC itself, all of it, and the rest
    for bit in (*begin, *end, *(draw.randrange(bits) for _ in range(500))):
        flip(file, bit)
        with pytest.raises(
            ValueError, match=r"training\.0\.safetensors is damaged: its CRC-32 was"
        ):
            check_bytes(file)
        flip(file, bit)
    check_bytes(file)


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that was saved at steps 2 and 4, and died at the fifth."""
    with monkeypatch.context() as patch:
        kill_before(patch, 5)
        with pytest.raises(Killed):
            sft(tiny_model(), tmp_path / "killed")
    return tmp_path / "killed"


@pytest.mark.parametrize("byte", [3, 100, -5])  # length, header, data
def test_from_a_damaged_state_it_goes_on_from_the_one_before(
    tmp_path: Path, killed: Path, capsys: pytest.CaptureFixture[str], byte: int
) -> None:
    sft(tiny_model(), tmp_path / "whole")
    file = killed / FILES[1]
    flip(file, 8 * (byte % file.stat().st_size))
    frozen = find_training(killed, start())
    assert frozen is not None and frozen.state["progress"]["step"] == 2
    capsys.readouterr()
    sft(tiny_model(), killed)
    assert files(killed) == files(tmp_path / "whole")
    said = capsys.readouterr().err
    assert str(file) in said and f"going on from {FILES[0]}" in said


def test_the_last_two_states_are_kept_whole(killed: Path) -> None:
    steps = [checkpoint.read_state(killed / name)["progress"]["step"] for name in FILES]
    assert steps == [2, 4]
    for name in FILES:
        check_bytes(killed / name)


def test_without_the_check_a_flipped_bit_goes_on(
    tmp_path: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: it is the check, and nothing else, that notices."""
    sft(tiny_model(), tmp_path / "whole")
    flip(killed / FILES[1], 8 * ((killed / FILES[1]).stat().st_size - 5))
    monkeypatch.setattr(checkpoint, "check_bytes", lambda file: None)
    sft(tiny_model(), killed)
    assert files(killed) != files(tmp_path / "whole")


def test_lost_records_are_refused(tmp_path: Path) -> None:
    sft(tiny_model(), tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train.jsonl lost bytes \(0 of"):
        sft(tiny_model(), tmp_path)
