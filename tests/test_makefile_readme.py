"""The commands that a newcomer reads about exist, and the tools that they call are set up."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from loop.__main__ import parse as parse_loop
from loop.health import RULES
from loop.options import parse_arguments
from loop.report import MEASURES, SIGNS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TARGETS = (
    "install",
    "run",
    "test",
    "lint",
    "bench",
    "bench-gpu",
    "controls",
    "soak",
    "base",
    "clean",
)


def rules() -> dict[str, str]:
    """Each target of the Makefile with its recipe."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text())
    return {
        match[1]: match[2]
        for match in re.finditer(r"^([\w./-]+):[^=\n]*\n((?:\t.*\n)*)", text, re.M)
    }


@pytest.mark.parametrize("target", TARGETS)
def test_every_promised_target_does_something(target):
    assert rules()[target] or target == "install"  # install is all in what it needs


@pytest.mark.parametrize("target", ["run", "test", "lint"])
def test_a_target_sets_the_machine_up_first(target):
    dry = ["make", "--dry-run", "--always-make", "PYTHON=python3", target]
    plan = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert plan.index("-m venv") < plan.index("--editable") < plan.index("touch .venv/installed")
    wanted = {"run": "train.py", "test": "pytest", "lint": "mypy"}[target]
    assert plan.index("touch .venv/installed") < plan.rindex(wanted)


def test_running_needs_no_test_tools():
    dry = ["make", "--dry-run", "--always-make", "PYTHON=python3", "run"]
    plan = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "[test" not in plan and "installed-tests" not in plan


def test_every_requirement_is_pinned_and_every_pin_is_one_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    assert len(pins) == len({pin.split("==")[0] for pin in pins})
    setup = (ROOT / "setup.py").read_text()
    lists = re.findall(
        r'(?:install_requires=|"test": |"lint": |"peers": )\[(.*?)\]', setup, re.DOTALL
    )
    names = re.findall(r'"([a-z-]+)', " ".join(lists))
    assert len(lists) == 4 and len(names) > 10
    assert set(names) <= {pin.split("==")[0] for pin in pins}


def test_tests_see_no_gpu(pytestconfig):
    """But for those that want one, and are run by themselves."""
    if pytestconfig.option.markexpr != "gpu":
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_warnings_are_errors():
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["tool"]["pytest"]["ini_options"]["filterwarnings"][0] == "error"


def commands() -> list[list[str]]:
    """The shell commands in the code blocks of the README and of two pages of the docs."""
    pages = "\n".join(
        path.read_text() for path in (README, ROOT / "docs/scale.md", ROOT / "docs/evaluation.md")
    )
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", pages, re.M | re.DOTALL)
    text = re.sub(r"\\\n", " ", "\n".join(blocks))
    lines = (line.removeprefix("$ ").strip() for line in text.splitlines())
    starts = ("make ", "python ", "torchrun ", ".venv/bin/")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


@pytest.mark.skipif(not README.exists(), reason="the README is not written yet")
def test_the_readmes_make_and_train_commands_are_understood():
    assert commands()
    for words in commands():
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(rules())
        elif "train.py" in words:
            parse_arguments(words[words.index("train.py") + 1 :])
        elif words[1:3] == ["-m", "loop"]:
            assert parse_loop(words[3:]).command in ("compare", "trace", "export")
        elif "-m" in words:
            assert (ROOT / words[words.index("-m") + 1].replace(".", "/")).exists()


def test_the_papers_commands_name_the_writer_of_prompts():
    """Its preset names a model that hardly anybody has at that place."""
    pages = ("README.md", "docs/scale.md", "docs/slurm.sh", "train.py", "seed/__main__.py")
    text = re.sub(r"\\\n", " ", "\n".join((ROOT / page).read_text() for page in pages))
    shown = [line for line in text.splitlines() if "train.py --preset paper" in line]
    assert len(shown) == 7 and all("--prompt-model" in line for line in shown)


def test_the_settings_of_docs_scale_are_settings():
    table = (ROOT / "docs/scale.md").read_text()
    found = re.findall(r"^\| `([\w.]+=\w+)`", table, re.M)
    assert len(found) == 10
    for assignment in found:
        parse_arguments(["--set", assignment])


def test_every_measure_and_every_rule_stands_in_docs_evaluation():
    page = (ROOT / "docs/evaluation.md").read_text()
    named = set(re.findall(r"`(\w+)`", page))
    progress = {"judged_win_rate", "lc_judged_win_rate"}  # told of by their file
    assert {m.key for m in (*MEASURES, *SIGNS)} - progress - named == set()
    rows = dict(re.findall(r"^\| ([a-z ]+) \| [^|]+ \| (stops|warning) \|", page, re.M))
    assert rows == {rule.name: "stops" if rule.stops else "warning" for rule in RULES}


def test_the_slurm_script_starts_torchrun_on_every_machine(tmp_path):
    """With stand-ins for Slurm's own commands: srun says what it was to start."""
    for name, body in (("scontrol", "printf 'n1\\nn2\\n'"), ("srun", "printf '%s\\n' \"$@\"")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "n[1-2]", "NNODES": "2", "GPUS_ON_NODE": "8", "JOB_ID": "7"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    script = ["bash", "docs/slurm.sh", "--set", "machine.shard=machine"]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    launcher, flags = words[: words.index("train.py")], words[words.index("train.py") + 1 :]
    assert launcher[0] == ".venv/bin/torchrun"
    given = dict(zip(launcher[1::2], launcher[2::2], strict=True))
    assert given["--nnodes"] == "2" and given["--nproc-per-node"] == "8"
    assert given["--rdzv-endpoint"] == "n1:29500" and given["--rdzv-id"] == "7"
    assert parse_arguments(flags).machine.shard == "machine"
