"""The reference: computed once, of the right model, kept by content, and equal to the last bit."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_runs import alone, pairs, records
from safetensors import safe_open
from tiny_llama import tiny_model

from dpo import TrainSettings, forget, train_dpo, trainer
from dpo.lines import Pair, Row
from dpo.reference import FILE, reference_key
from llama import Llama, fingerprint
from llama.parallel import shard, start

SETTINGS = TrainSettings(learning_rate=1e-3, batch_size=4, dropout=0.0, micro_tokens=128)


def train(
    model: Llama, directory: Path | None, some: list[Pair], settings: TrainSettings = SETTINGS
) -> dict[str, float]:
    return train_dpo(model, some, settings, seed=0, group=start(), directory=directory)


def kept(directory: Path) -> tuple[list[float], list[float], str]:
    with safe_open(directory / FILE, "pt") as stored:
        both = [stored.get_tensor(name).tolist() for name in ("chosen", "rejected")]
        return both[0], both[1], stored.metadata()["key"]


def test_the_first_loss_is_ln_2_and_the_first_margin_0_exactly(tmp_path: Path) -> None:
    train(tiny_model(), tmp_path, pairs(12))
    first, *later = records(tmp_path)
    assert first["margin"] == 0 and first["chosen_reward"] == 0 and first["rejected_reward"] == 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert all(record["margin"] != 0 for record in later)  # the reference stays, the policy moves


def test_kept_numbers_are_those_of_the_rows_alone(tmp_path: Path) -> None:
    model, some = tiny_model(), pairs(9)
    expected_chosen = [alone(model, pair.chosen).item() for pair in some]
    expected_rejected = [alone(model, pair.rejected).item() for pair in some]
    train(model, tmp_path, some)
    chosen, rejected, key = kept(tmp_path)
    assert chosen == pytest.approx(expected_chosen, rel=1e-5)
    assert rejected == pytest.approx(expected_rejected, rel=1e-5)
    assert key == reference_key(fingerprint(tiny_model()), some)


def test_the_reference_is_the_model_of_this_iteration(tmp_path: Path) -> None:
    """M2's training starts from M1 and stays near M1: not near the base that M1 came from."""
    model, some = tiny_model(), pairs(8)
    train(model, tmp_path / "M1", some)
    between = [alone(model, pair.chosen).item() for pair in some]
    train(model, tmp_path / "M2", some)
    assert records(tmp_path / "M2")[0]["margin"] == 0
    assert kept(tmp_path / "M2")[0] == pytest.approx(between, rel=1e-5)
    base = [alone(tiny_model(), pair.chosen).item() for pair in some]
    assert kept(tmp_path / "M2")[0] != pytest.approx(base, rel=1e-3)  # negative control


def test_a_stale_reference_in_the_directory_is_replaced(tmp_path: Path) -> None:
    some = pairs(8)
    train(tiny_model(seed=1), tmp_path, some)
    forget(tmp_path, start())
    train(tiny_model(seed=2), tmp_path, some)
    assert records(tmp_path)[0]["margin"] == 0
    assert kept(tmp_path)[2] == reference_key(fingerprint(tiny_model(seed=2)), some)


def test_a_reference_computed_in_another_type_is_replaced(tmp_path: Path) -> None:
    some = pairs(8)
    train(tiny_model(), tmp_path, some)
    before = kept(tmp_path)
    forget(tmp_path, start())
    train(shard(tiny_model(), start(), torch.bfloat16), tmp_path, some)
    start().stop()
    assert kept(tmp_path)[0] != before[0] and kept(tmp_path)[2] != before[2]
    assert records(tmp_path)[0]["margin"] == 0


def test_a_hit_computes_nothing_and_equals_recomputation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = pairs(8)
    train(tiny_model(), tmp_path, some)
    before = (tmp_path / FILE).read_bytes()
    trained = records(tmp_path)
    forget(tmp_path, start())

    calls = []
    usual = trainer.forward_logps

    def counting(model: Llama, lines: list, **how: Any) -> torch.Tensor:
        calls.append(len(lines))
        return usual(model, lines, **how)

    monkeypatch.setattr(trainer, "forward_logps", counting)
    train(tiny_model(), tmp_path, some)
    assert calls == [] and records(tmp_path) == trained

    (tmp_path / FILE).unlink()
    forget(tmp_path, start())
    train(tiny_model(), tmp_path, some)
    assert sum(calls) == 8 and (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped header", "empty"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    some = pairs(6)
    train(tiny_model(), tmp_path, some)
    whole = (tmp_path / FILE).read_bytes()
    broken = {"cut": whole[:-3], "flipped header": b"\xff" + whole[1:], "empty": b""}[damage]
    (tmp_path / FILE).write_bytes(broken)
    forget(tmp_path, start())
    train(tiny_model(), tmp_path, some)
    assert (tmp_path / FILE).read_bytes() == whole


def test_the_key_sees_weights_tokens_masks_and_order() -> None:
    one, two = pairs(2)
    first = one.chosen
    changed_ids = Row([*first.ids[:-1], first.ids[-1] + 1], first.is_response)
    changed_mask = Row(first.ids, [*first.is_response[:-1], False])
    keys = [
        reference_key("w", [one, two]),
        reference_key("v", [one, two]),
        reference_key("w", [two, one]),
        reference_key("w", [one]),
        reference_key("w", [Pair(changed_ids, one.rejected), two]),
        reference_key("w", [Pair(changed_mask, one.rejected), two]),
        reference_key("w", [Pair(one.rejected, one.chosen), two]),
    ]
    assert len(set(keys)) == len(keys)
    assert reference_key("w", [one, two]) == keys[0]


def test_dropout_is_off_for_the_reference() -> None:
    """Whatever state the model comes in; and it leaves in evaluation mode."""
    model = tiny_model()
    model.train()
    model.dropout = 0.5
    settings = TrainSettings(learning_rate=1e-9, batch_size=8, dropout=0.0)
    assert train(model, None, pairs(8), settings)["margin"] == 0
    assert not model.training and model.dropout == 0
