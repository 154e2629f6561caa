"""`--profile` and `--tensorboard` of train.py: told to each training, no part of what it makes."""

import sys

import pytest
from tiny_llama import tiny_model, tiny_tokenizer

from dpo import Telemetry, TrainSettings
from llama import save
from llama.parallel import start
from loop.command import run_command
from loop.manifest import Manifest
from loop.models import Models
from loop.options import parse_arguments, parse_command
from loop.run import Run
from loop.settings import Settings
from seed.read import Seed

HOW = TrainSettings(learning_rate=1e-3, batch_size=1, dropout=0.1)
EXAMPLES = [(f"Count {i}", f"{i} words.") for i in range(9)]


def trained(root, telemetry):
    """What the manifest records of M1."""
    save(tiny_model(), tiny_tokenizer(), root / "model")
    with Run.open(root / "run", {}, start()) as run:
        models = Models(run, Settings(), start(), telemetry)
        models.sft("M1", root / "model", EXAMPLES, HOW)
    return Manifest(root / "run").stages["M1"]["files"]


def test_a_profiled_model_is_recorded_as_any_other(tmp_path):
    profiled = trained(tmp_path / "with", Telemetry(profile=True))
    assert profiled == trained(tmp_path / "without", Telemetry())
    assert {"train.jsonl", "model.safetensors"} <= profiled.keys()
    names = {path.name for path in (tmp_path / "with" / "run" / "M1" / "telemetry").iterdir()}
    assert names == {"profile.txt", "profile.trace.json.gz"}
    assert not (tmp_path / "without" / "run" / "M1" / "telemetry").exists()


def test_the_flags_change_no_setting():
    assert parse_command(["--profile"]).telemetry == Telemetry(profile=True)
    assert parse_command(["--profile"]).settings == parse_command([]).settings
    assert parse_command([]).telemetry == Telemetry()
    with pytest.raises(ValueError, match="--profile and --tensorboard are flags of train.py alone"):
        parse_arguments(["--profile"])


IFT = [{"prompt": f"Name {n} trees."} for n in range(8)]


def test_train_hands_them_on(tmp_path, monkeypatch):
    """As far as the models of a run that has no steps."""
    begun = []

    class Loop:
        def __init__(self, run, settings, given, models):
            begun.append(models.telemetry)
            raise ValueError("far enough")

    class Given:
        inputs, model = {}, tmp_path
        seed = Seed(ift=IFT, eft=[], ranked=[], held_out=[], eft_ranked=[])

    flags = ["--preset", "smoke", "--run", str(tmp_path / "run"), "--profile"]
    assert run_command(lambda *where: Given, Loop, flags) == 2
    assert begun == [Telemetry(profile=True)]


def test_curves_without_their_package_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run_command(None, None, ["--tensorboard", "--run", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs the package tensorboard" in line and not (tmp_path / "run").exists()
