"""Meta's layout: bit-exact both ways, its rotary order, its parts, and what must be refused."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from tiny_llama import GROUPED, same_weights, tiny_model, tiny_tokenizer

import llama
from llama import meta
from llama.__main__ import main
from llama.config import PRESETS, from_meta
from llama.meta import _params, pairs_from_halves, write_meta
from llama.model import rotary_tables, rotate
from llama.weights import held, read_checkpoint

TIED = replace(GROUPED, tie_embeddings=True)


@pytest.fixture
def saved(tmp_path):
    """A Hugging Face directory with a small model."""
    llama.save(tiny_model(), tiny_tokenizer(), tmp_path / "M1")
    return tmp_path / "M1"


EIGHT_HEADS = replace(GROUPED, dim=64, n_heads=16, n_kv_heads=8, ffn_dim=40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_meta_and_back_is_bit_exact(tmp_path, shards: int, dtype: torch.dtype) -> None:
    """ours → Hugging Face → Meta → Hugging Face → ours"""
    model, runs = tiny_model(EIGHT_HEADS).to(dtype), [tmp_path / name for name in "abc"]
    llama.save(model, tiny_tokenizer(), runs[0])
    hf, meta, again = map(str, runs)
    assert main(["convert", hf, meta, "--to", "meta", "--shards", str(shards)]) == 0
    assert main(["convert", meta, again, "--to", "hf"]) == 0
    assert len(list(runs[1].glob("*.pth"))) == shards
    for path in (meta, again):
        assert same_weights(llama.load(path, dtype)[0], model)
    assert (runs[0] / "model.safetensors").read_bytes() == (
        runs[2] / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("mapped_bytes", [0, meta.MAPPED_BYTES])
def test_any_slice_of_metas_parts(tmp_path, monkeypatch, shards: int, mapped_bytes: int) -> None:
    """A rank's rows, and columns as tensor parallelism wants them, out of any number of parts."""
    monkeypatch.setattr(meta, "MAPPED_BYTES", mapped_bytes)
    model = tiny_model(EIGHT_HEADS)
    write_meta(tmp_path, held(model.state_dict()), EIGHT_HEADS, tiny_tokenizer(), shards)
    weights = read_checkpoint(tmp_path).weights
    for name, tensor in model.state_dict().items():
        for rows in (slice(0, 7), slice(5, 23), slice(20, None), slice(3, 3)):
            assert torch.equal(weights.read(name, (rows,), None), tensor[rows])
            if tensor.ndim == 2:
                assert torch.equal(
                    weights.read(name, (rows, slice(4, 33)), None), tensor[rows, 4:33]
                )


def test_a_part_that_is_not_there_or_of_another_type_is_named(tmp_path) -> None:
    write_meta(tmp_path, held(tiny_model().state_dict()), GROUPED, tiny_tokenizer(), parts=2)
    second = tmp_path / "consolidated.01.pth"
    part = torch.load(second, weights_only=True)
    torch.save({name: tensor.half() for name, tensor in part.items()}, second)
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: .* is torch\.float16, unlike"):
        read_checkpoint(tmp_path)
    (tmp_path / "consolidated.00.pth").unlink()
    with pytest.raises(ValueError, match=r"holds consolidated\.01\.pth, but no consolidated\.00"):
        read_checkpoint(tmp_path)


def test_metas_rotary_order() -> None:
    """Meta turns neighbours (2e, 2e + 1); ours turns halves (e, e + D/2): attention scores must
    agree.
    """
    D, dim = GROUPED.head_dim, GROUPED.dim
    weight, x_TC = (
        torch.randn(2, dim, dim, generator=torch.Generator().manual_seed(0)),
        torch.randn(5, dim),
    )
    cos, sin = rotary_tables(torch.arange(5)[None], D, 10000.0)
    ours = [rotate((x_TC @ w.T).unflatten(-1, (-1, D))[None], cos, sin)[0] for w in weight]
    turn = torch.complex(cos[..., : D // 2], sin[..., D // 2 :])[0]  # the first half has -sin
    theirs = []
    for w in weight:
        pairs = (x_TC @ pairs_from_halves("wq.weight", w, GROUPED).T).unflatten(-1, (-1, D // 2, 2))
        theirs.append(
            torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn).flatten(-2)
        )
    score = "thd,shd->hts"
    torch.testing.assert_close(
        torch.einsum(score, *ours), torch.einsum(score, *theirs), atol=1e-4, rtol=1e-4
    )


def test_metas_file_as_meta_writes_it(tmp_path) -> None:
    """The names and cuts of Llama 2's own files: two parts, a rope table in each, the tokenizer
    beside the directory.
    """
    path = tmp_path / "llama-2"
    model = tiny_model()
    write_meta(path, held(model.state_dict()), GROUPED, tiny_tokenizer(), parts=2)
    (path / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    for file in path.glob("*.pth"):
        part = torch.load(file, weights_only=True)
        shapes = {name: tuple(part[name].shape) for name in part}
        assert shapes["tok_embeddings.weight"] == (400, 12)
        assert shapes["layers.0.attention.wk.weight"] == (6, 24)
        assert shapes["layers.0.attention.wo.weight"] == (24, 12)
        assert shapes["layers.1.feed_forward.w2.weight"] == (24, 18)
        assert shapes["layers.1.ffn_norm.weight"] == (24,)
        assert shapes["output.weight"] == (200, 24)
        assert file.stat().st_size < 100_000  # a part holds a part
        torch.save(part | {"rope.freqs": torch.ones(3)}, file)
    again, _ = llama.load(path)
    assert same_weights(again, model)
    assert again.config == replace(GROUPED, max_seq_len=4096)  # the layout does not say


@pytest.mark.parametrize("name", PRESETS)
def test_metas_params_say_the_same_shape(name: str) -> None:
    config = replace(PRESETS[name], tie_embeddings=False, max_seq_len=4096)
    params = json.loads(json.dumps(_params(config)))
    assert from_meta(params, config.vocab_size) == config


def test_a_tied_output_becomes_a_copy(tmp_path) -> None:
    model = tiny_model(TIED)
    write_meta(tmp_path, held(model.state_dict()), TIED, tiny_tokenizer())
    again, _ = llama.load(tmp_path)
    assert torch.equal(again.output.weight, model.tok_embeddings.weight)
    tokens_BT = torch.arange(9)[None]
    torch.testing.assert_close(again(tokens_BT), model(tokens_BT))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_hostile_pth_is_never_executed(tmp_path, how: str) -> None:
    write_meta(tmp_path, held(tiny_model().state_dict()), GROUPED, tiny_tokenizer())
    file, trace = tmp_path / "consolidated.00.pth", tmp_path / "trace"
    payload = {"output.weight": Payload(f"touch {trace}")}
    if how == "torch":
        torch.save(payload, file)
    else:
        file.write_bytes(pickle.dumps(payload))
    with pytest.raises(
        ValueError, match=r"consolidated\.00\.pth is damaged or holds more than tensors"
    ):
        read_checkpoint(tmp_path)
    assert not trace.exists()
    with file.open("rb") as stream:  # the control: it would have run
        torch.load(stream, weights_only=False) if how == "torch" else pickle.load(stream)
    assert trace.exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.pop("norm.weight"), r"'norm\.weight' is missing"),
        (lambda p: p.update(x=torch.zeros(1)), "'x' belongs to no weight"),
        (lambda p: p.update({"norm.weight": torch.ones(3)}), r"'norm\.weight' has shape"),
        (
            lambda p: p.update({"norm.weight": torch.ones(24).long()}),
            r"'norm\.weight' is no tensor",
        ),
        (lambda p: p.update({"norm.weight": [1.0]}), r"'norm\.weight' is no tensor"),
    ],
)
def test_every_tensor_of_metas_is_accounted_for(tmp_path, edit, message) -> None:
    write_meta(tmp_path, held(tiny_model().state_dict()), GROUPED, tiny_tokenizer(), parts=2)
    file = tmp_path / "consolidated.01.pth"
    part = torch.load(file, weights_only=True)
    edit(part)
    torch.save(part, file)
    with pytest.raises(ValueError, match=rf"consolidated\.01\.pth.*{message}"):
        llama.load(tmp_path)


def test_convert_reports_errors_and_overwrites_nothing(saved, tmp_path, capsys) -> None:
    assert main(["convert", str(saved), str(saved), "--to", "meta"]) == 2
    assert "is not an empty directory" in capsys.readouterr().err
    assert main(["convert", str(saved), str(tmp_path / "x"), "--to", "meta", "--shards", "3"]) == 2
    assert "cannot be dealt to 3 parts" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "x"), "--to", "hf"]) == 2
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert main(["convert", str(saved), str(tmp_path / "file" / "x"), "--to", "hf"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "file" / "x") in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["convert", "M", "out", "--to", "hf"], "stopped; remove what was written, and run it"),
        (["plan", "--model", "M"], "stopped"),
    ],
)
def test_ctrl_c_is_a_line_and_its_own_code(monkeypatch, capsys, flags, said) -> None:
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("llama.__main__.read_checkpoint", interrupted)
    assert main(flags) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
