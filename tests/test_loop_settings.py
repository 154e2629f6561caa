"""Presets, files and flags say the same things, and a mistake is told by place, key and remedy."""

import ast
from dataclasses import asdict, fields, is_dataclass, replace
from inspect import signature
from pathlib import Path

import pytest

from dpo.settings import TrainSettings
from judge import answer_pairs
from loop.command import check_writer, named_inputs
from loop.options import PRESETS, build, parse_arguments, preset_path, read_toml
from loop.run import Run
from loop.settings import (
    CHOOSING,
    DECODING,
    FILTERS,
    MAY_DIFFER,
    WRITING,
    Choice,
    Judging,
    Meta,
    Prompts,
    Settings,
)
from sampling.respond import respond_in_parts
from sampling.self_instruct import write_prompts
from sampling.sieve import Sieve

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))


def refusal(*argv):
    with pytest.raises(ValueError) as caught:
        parse_arguments(argv)
    return str(caught.value)


def test_there_are_the_three_presets_and_world_is_the_default():
    assert NAMES == ["paper", "smoke", "world"]
    assert parse_arguments([]) == parse_arguments(["--preset", "world"])


def test_the_paper_preset_holds_the_papers_numbers():
    paper = parse_arguments(["--preset", "paper"])
    assert (paper.sft.learning_rate, paper.sft.min_learning_rate) == (5.5e-6, 1.1e-6)
    assert (paper.dpo.learning_rate, paper.dpo.min_learning_rate) == (1e-6, 1e-7)
    assert paper.sft.batch_size == paper.dpo.batch_size == 16
    assert paper.sft.dropout == paper.dpo.dropout == paper.dpo.beta == 0.1
    assert (paper.dpo.nll_weight, paper.dpo.replay_weight) == (0, 0)
    assert (paper.prompts.n_seed, paper.prompts.n_made) == (6, 2)
    assert (paper.prompts.temperature, paper.prompts.top_p) == (0.6, 0.9)
    assert (paper.responses.n, paper.responses.temperature, paper.responses.top_p) == (4, 0.7, 0.9)
    assert (paper.judging.k, paper.judging.temperature, paper.judging.top_p) == (3, 0.7, 0.9)
    assert (paper.judging.eft_rows, paper.judging.practice) == (1630, 0)
    assert paper.iterations == 3 and paper.judging.rubric == "additive"


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "smoke"\nseed = 4\niterations = 2\n[dpo]\nbeta = 0.2\nclip = 2\n')
    settings = parse_arguments(["--config", str(path), "--seed", "5", "--set", "dpo.beta=0.3"])
    smoke = parse_arguments(["--preset", "smoke"])
    expected = replace(smoke, seed=5, iterations=2, dpo=replace(smoke.dpo, beta=0.3, clip=2.0))
    assert settings == expected
    world = parse_arguments(["--preset", "world", "--config", str(path)])
    assert world.sft == parse_arguments([]).sft and world.dpo.beta == 0.2


def test_every_top_level_flag_is_the_setting_of_its_name():
    argv = ["--run", "a", "--model", "b", "--seed-data", "c", "--iterations", "7", "--seed", "8"]
    settings = parse_arguments(argv)
    assert (settings.run, settings.model, settings.seed_data) == ("a", "b", "c")
    assert (settings.iterations, settings.seed) == (7, 8)


@pytest.mark.parametrize(
    "text, value",
    [
        ("sft.max_steps=9", 9),
        ("sft.max_steps=none", None),
        ("prompts.keywords=['a', 'b']", ("a", "b")),
        ("prompts.writer=current", "current"),
        ('prompts.writer="current"', "current"),
        ("dpo.loss=ipo", "ipo"),
        ("dpo.recompute=full", "full"),
        ("dpo.compile=true", True),
        ("dpo.beta=1", 1.0),
    ],
)
def test_a_setting_is_set_by_its_full_name(text, value):
    section, key = text.split("=")[0].split(".")
    found = getattr(getattr(parse_arguments(["--set", text]), section), key)
    assert found == value and type(found) is type(value)


def test_an_unknown_key_is_told_by_file_and_nearest_name(tmp_path):
    path = tmp_path / "mine.toml"
    for text, said in [
        ("[dpo]\nbetta = 1", "unknown key 'dpo.betta'; did you mean dpo.beta?"),
        ("sede = 1", "unknown key 'sede'; did you mean seed?"),
        ("[judge]\nk = 1", "unknown key 'judge'; did you mean judging?"),
        ("zzzz = 1", "unknown key 'zzzz'; expected one of run, model,"),
    ]:
        path.write_text(text)
        assert refusal("--config", str(path)).startswith(f"{path}: {said}")


def test_a_value_of_the_wrong_type_is_told(tmp_path):
    path = tmp_path / "mine.toml"
    for text, said in [
        ("seed = 1.5", "seed: expected int, found 1.5"),
        ("seed = true", "seed: expected int, found True"),
        ('[dpo]\nbeta = "much"', "dpo.beta: expected float, found 'much'"),
        ("[dpo]\nmax_steps = 1.5", "dpo.max_steps: expected int, found 1.5"),
        ("[prompts]\nkeywords = [1]", "prompts.keywords: expected a list of str, found [1]"),
        ("[dpo]\ncompile = 1", "dpo.compile: expected bool, found 1"),
        ("dpo = 3", "dpo: expected a table [dpo], found 3"),
        ("model = 3", "model: expected str, found 3"),
    ]:
        path.write_text(text)
        assert refusal("--config", str(path)) == f"{path}: {said}"


def test_an_impossible_value_is_told_by_the_place_that_gave_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[responses]\ntop_p = 0")
    assert refusal("--config", str(path)).startswith(f"{path}: responses.top_p must be above 0")
    for text, said in [
        ("responses.n=1", "responses.n must be at least 2, found 1"),
        ("dpo.beta=-1", "dpo.beta must be above 0, found -1.0"),
        ("judging.temperature=-0.1", "judging.temperature must be at least 0, found -0.1"),
        ("dtype=float16", "dtype must be float32 or bfloat16, found 'float16'"),
        ("dpo.recompute=half", "dpo.recompute must be one of none, selective, full, found 'half'"),
        ("sft.moments=int8", "sft.moments must be one of float32, bfloat16, found 'int8'"),
        ("machine.shard=card", "machine.shard must be all or machine, found 'card'"),
        ("evaluation.level=1", "evaluation.level must lie between 0 and 1, found 1.0"),
        ("sft.nll_weight=1", "sft.nll_weight means nothing: SFT has no pairs"),
        ("sft.loss=ipo", "sft.loss means nothing: SFT has no pairs"),
        ("dpo.loss=dop", "dpo.loss must be one of dpo, cdpo, robust,"),
        ("dpo.gamma=1", "dpo.gamma means nothing with loss dpo"),
    ]:
        assert refusal("--set", text).startswith(f"--set {text}: {said}")
    assert "invalid number value: 'until'" in refusal("--iterations", "until")
    assert refusal("--iterations", "0").startswith("the flags: iterations must be at least 1")


def test_an_unknown_flag_preset_or_file_is_told(tmp_path):
    assert refusal("--sed", "3") == "unknown flag --sed; did you mean --seed?"
    assert refusal("--seed", "x").startswith("argument --seed: invalid int value")
    assert refusal("--preset", "big") == "unknown preset 'big': expected one of paper, smoke, world"
    assert "SECTION.KEY=VALUE" in refusal("--set", "dpo.beta")
    assert refusal("--config", str(tmp_path)).startswith(f"{tmp_path}: cannot be read")
    for data in (b"a = ", b"\xff"):
        (tmp_path / "bad.toml").write_bytes(data)
        assert refusal("--config", str(tmp_path / "bad.toml")).startswith(f"{tmp_path}/bad.toml: ")


def leaves(kind, prefix=""):
    """Dotted names of all settings below a dataclass."""
    from typing import get_type_hints

    for name, hint in get_type_hints(kind).items():
        yield from leaves(hint, f"{prefix}{name}.") if is_dataclass(hint) else [prefix + name]


def test_every_setting_can_be_said_in_a_file():
    """What asdict gives, in TOML's words, builds the same settings again."""

    def in_toml(value):
        if isinstance(value, dict):
            return {key: in_toml(part) for key, part in value.items()}
        return "none" if value is None else list(value) if isinstance(value, tuple) else value

    for name in NAMES:
        settings = parse_arguments(["--preset", name])
        assert build([("again", in_toml(asdict(settings)))]) == settings


def test_the_identity_of_a_run_leaves_out_places_and_machine_and_nothing_else():
    left_out = {"run", "model", "seed_data", "machine"}
    assert set(asdict(Settings())) - set(Settings().identity()) == left_out


def test_what_the_machine_bears_may_change_on_the_same_run(tmp_path, alone):
    assert set(MAY_DIFFER) <= set(leaves(Settings))
    usual, small = parse_arguments([]), ["--set", "machine.shard=machine", "--iterations", "9"]
    for assignment in ("sft.recompute=full", "dpo.micro_tokens=64", "dpo.compile=true"):
        small += ["--set", assignment]
    for settings in (usual, parse_arguments(small)):
        with Run.open(tmp_path, settings.identity(), alone, may_change=MAY_DIFFER) as run:
            run.json("made.json", dict, "something made")
    for other in ("dpo.moments=bfloat16", "sft.batch_size=8"):
        identity = parse_arguments(["--set", other]).identity()
        with pytest.raises(ValueError, match=other.split("=")[0]):
            Run.open(tmp_path, identity, alone, may_change=MAY_DIFFER)


def test_presets_say_nothing_that_a_field_does_not_know():
    names = set(leaves(Settings))
    for preset in NAMES:
        for key, value in read_toml(preset_path(preset)).items():
            keys = {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key}
            assert keys <= names


def attributes_read(source: str) -> set[str]:
    tree = ast.walk(ast.parse(source))
    return {n.attr for n in tree if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def programs() -> list[Path]:
    """Our Python files, but for tests and for the files that only define settings."""
    ours = [path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] in PACKAGES]
    defining = {ROOT / "loop" / "settings.py", ROOT / "loop" / "options.py"}
    return [path for path in [ROOT / "train.py", *ours] if path not in defining]


PACKAGES = ("llama", "sampling", "judge", "dpo", "seed", "loop")


@pytest.mark.skipif(not (ROOT / "train.py").exists(), reason="train.py reads most settings")
def test_every_setting_is_read_somewhere():
    read = set().union(*(attributes_read(path.read_text()) for path in programs()))
    read |= {
        *CHOOSING,
        *DECODING,
        *FILTERS,
        *WRITING,
    }  # read by name, and handed on: see the next test
    unread = [name for name in leaves(Settings) if name.rsplit(".", 1)[-1] not in read]
    assert not unread


def test_settings_that_are_handed_on_are_parameters_of_who_gets_them():
    handed = (
        (CHOOSING, answer_pairs),
        (DECODING, respond_in_parts),
        (FILTERS, Sieve),
        (WRITING, write_prompts),
    )
    for names, function in handed:
        assert set(names) <= set(signature(function).parameters)


def test_the_search_for_unread_settings_finds_one():
    assert attributes_read("settings.dpo.beta; settings.sft.clip = 3") >= {"dpo", "beta"}
    assert "clip" not in attributes_read("settings.sft.clip = 3")


def test_training_settings_are_dpos_own():
    hints = {field.name for field in fields(TrainSettings)}
    assert {"beta", "learning_rate", "nll_weight"} <= hints
    assert type(Settings().dpo) is type(Settings().sft) is TrainSettings


def test_two_settings_of_sections_have_flags_of_their_own():
    assert parse_arguments(["--prompt-model", "there"]).prompts.writer == "there"
    flags = ["--prompt-model", "there", "--set", "prompts.writer=current"]
    assert parse_arguments(flags).prompts.writer == "current"
    flags = ["--sample-tp", "4", "--set", "seed=1"]
    assert parse_arguments(flags).machine.sample_tp == 4
    assert refusal("--sample-tp", "0").startswith("--sample-tp: machine.sample_tp must be at least")


def test_a_chat_writer_must_speak_our_format(tmp_path):
    chats = Settings(prompts=Prompts(writer=str(tmp_path), chat=True))
    check_writer(chats)  # no template at all: as Llama 2's own directories
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": "{{ bos_token }}[INST] {{ x }} [/INST]"}')
    check_writer(chats)
    config.write_text('{"chat_template": "USER: {{ x }} ASSISTANT:"}')
    with pytest.raises(ValueError, match=r"tokenizer_config.json: its chat .* prompts.chat=false"):
        check_writer(chats)
    check_writer(Settings(prompts=Prompts(writer=str(tmp_path))))
    check_writer(Settings(prompts=Prompts(writer="current", chat=True)))


def test_what_a_setting_names_by_its_place_is_an_input_of_the_run(tmp_path):
    mine = tmp_path / "mine.txt"
    assert named_inputs(Settings()) == {}
    assert named_inputs(Settings(prompts=Prompts(writer="current"))) == {}
    named = Settings(prompts=Prompts(writer="chat"), judging=Judging(rubric=str(mine)))
    assert named_inputs(named) == {"writer": Path("chat")}  # there is no such file
    mine.write_text("{prompt} {response}")
    assert named_inputs(named) == {"writer": Path("chat"), "rubric": mine}
    others = Settings(meta=Meta(template=str(mine)), choice=Choice(by="judge", judge="expert"))
    assert named_inputs(others) == {"meta": mine, "judge": Path("expert")}
    assert named_inputs(Settings(choice=Choice(judge="expert"))) == {}  # nobody asks it


def test_until_plateau_is_a_word_for_two_settings():
    both = parse_arguments(["--iterations", "until-plateau"])
    assert (both.iterations, both.until_plateau) == (10, True)
    assert parse_arguments([]).until_plateau is False
    capped = ["--iterations", "until-plateau", "--set", "iterations=4"]
    assert parse_arguments(capped) == replace(both, iterations=4)
    assert {"iterations", "until_plateau"} <= set(MAY_DIFFER)  # a finished run may go on that way
