"""`python -m seed`: what goes into which file, and that a run can begin with it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seed.__main__ import main
from seed.build import PRESETS, Sizes, split
from seed.items import Answer, Item
from seed.read import read_held_out, read_ift, read_ranked

TREES = Path(__file__).parent / "data" / "oasst.trees.jsonl"
FILES = ("held_out", "ranked", "ift", "eft_ranked")
SMALL = ("--held-out", "4", "--ranked", "8", "--ift", "8")


def item(name, *ranks):
    answers = tuple(Answer(f"{name} answer {i}", rank) for i, rank in enumerate(ranks))
    return Item(name, f"prompt {name}", answers)


RANKS = st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=4)
SIZE = st.integers(1, 6)


@given(
    st.lists(RANKS, max_size=25), SIZE, SIZE, SIZE, st.one_of(st.none(), SIZE), st.integers(0, 9)
)
def test_the_files_are_disjoint_and_as_large_as_asked(ranks, ift, ranked, held_out, eft, seed):
    items = {f"i{n}": item(f"i{n}", *each) for n, each in enumerate(ranks)}
    sizes = Sizes(ift=ift, ranked=ranked, held_out=held_out, eft_ranked=eft)
    try:
        files = split(list(items.values()), sizes, seed)
    except ValueError as error:
        assert "asked for" in str(error) and "add a source" in str(error)
        return
    used = [row["id"] for name in FILES for row in files[name]]
    assert len(used) == len(set(used)) and set(used) <= set(items)
    assert (len(files["held_out"]), len(files["ift"])) == (held_out, ift)
    for name, size in (("ranked", ranked), ("eft_ranked", eft)):
        counts = [len(row["responses"]) for row in files[name]]
        assert size is None or sum(counts[:-1]) < size <= sum(counts)
    if eft is None:
        assert not any(items[name].ranked for name in set(items) - set(used))
    for row in files["ift"]:
        best = {answer.text for answer in items[row["id"]].answers if answer.rank == 0}
        assert row["response"] in best and row["prompt"] == items[row["id"]].prompt
    for row in files["ranked"] + files["eft_ranked"]:
        rank_of = {answer.text: answer.rank for answer in items[row["id"]].answers}
        given = [(rank_of[each["text"]], each["rank"]) for each in row["responses"]]
        assert None not in dict(given) and min(new for _, new in given) == 0
        for old, new in given:  # a rank is the number of ranks that are better
            assert new == len({other for other, _ in given if other < old})


@pytest.mark.parametrize("seed", range(5))
def test_ift_takes_first_what_cannot_be_ranked(seed):
    rich = [item(f"rich{n}", 0, 1) for n in range(40)]
    single = [item(f"single{n}", 0) for n in range(40)]
    files = split([*rich, *single], Sizes(ift=25, ranked=20, held_out=10), seed)
    assert all(row["id"].startswith("single") for row in files["ift"])
    assert len(files["eft_ranked"]) + len(files["ranked"]) >= 40 - 10


def test_what_is_measured_on_is_drawn_from_all():
    """Not from those whose best answer is gone, of which nothing else could be made."""
    kinds = {"whole": (0, 1, 2), "headless": (1, 2), "single": (0,), "bare": (None,)}
    items = [item(f"{kind}{n}", *ranks) for kind, ranks in kinds.items() for n in range(100)]
    files = split(items, Sizes(ift=20, ranked=200, held_out=100), 0)
    names = [row["id"].rstrip("0123456789") for row in files["held_out"]]
    assert all(10 <= names.count(kind) <= 40 for kind in kinds)  # of 100, a quarter each
    names = [row["id"].rstrip("0123456789") for row in files["ranked"]]
    assert 0.3 < names.count("whole") / len(names) < 0.7


def test_the_seed_draws_and_nothing_else():
    items = [item(f"i{n}", 0, 1, 2) for n in range(40)]
    sizes = Sizes(ift=5, ranked=6, held_out=5)
    assert split(items, sizes, 1) == split(items, sizes, 1) != split(items, sizes, 2)


def test_flawed_items_are_in_no_file():
    good = [item(f"i{n}", 0, 1) for n in range(3)]
    bad = Item("bad", "prompt", good[0].answers, flaw="deleted")
    files = split([bad, *good], Sizes(ift=1, ranked=2, held_out=1), 0)
    assert "bad" not in {row["id"] for rows in files.values() for row in rows}
    with pytest.raises(ValueError, match="ift: 1 asked for, 0 left"):
        split([bad, *good[:2]], Sizes(ift=1, ranked=2, held_out=1), 0)


def test_the_presets_hold_the_papers_numbers():
    assert (PRESETS["paper-v1"].ift, PRESETS["paper-v1"].ranked) == (3200, 531)
    assert (PRESETS["paper-v3"].ift, PRESETS["paper-v3"].ranked) == (3200, 541)
    assert all(preset.eft_ranked is None for preset in PRESETS.values())


def made(directory, *sources, flags=SMALL):
    assert main([*map(str, sources), "--out", str(directory), *flags]) == 0
    return json.loads((directory / "report.json").read_text())


def test_the_dump_becomes_files_that_a_run_reads(tmp_path, capsys):
    report = made(tmp_path / "seed", TREES)
    rows = {
        "ift": read_ift(tmp_path / "seed" / "ift.jsonl"),
        "held_out": read_held_out(tmp_path / "seed" / "held_out.jsonl"),
        "ranked": read_ranked(tmp_path / "seed" / "ranked.jsonl"),
        "eft_ranked": read_ranked(tmp_path / "seed" / "eft_ranked.jsonl"),
    }
    assert {name: size["prompts"] for name, size in report["files"].items()} == {
        name: len(rows[name]) for name in FILES
    }
    assert (len(rows["held_out"]), len(rows["ift"])) == (4, 8)
    assert sum(map(len, rows.values())) + report["unused"] == 24  # the prompts kept, by hand
    # of the 19 with ranked answers all are used, and at most the 3 without a use are left over
    assert report["unused"] <= 3
    sizes = {"ift": 8, "ranked": 8, "held_out": 4, "eft_ranked": None}
    assert report["settings"] == {"language": "en", "seed": 0, "sizes": sizes}
    out = capsys.readouterr().out
    assert "another language" in out and "eft_ranked.jsonl" in out


def test_the_same_command_writes_the_same_bytes(tmp_path):
    for name in "ab":
        made(tmp_path / name, TREES)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    made(tmp_path / "c", TREES, flags=(*SMALL, "--seed", "1"))
    assert (tmp_path / "a/ift.jsonl").read_bytes() != (tmp_path / "c/ift.jsonl").read_bytes()


def rows_in(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sources_of_several_kinds_are_put_together(tmp_path):
    alpaca = rows_in(
        tmp_path / "alpaca.jsonl",
        *({"instruction": f"say {n}", "output": f"{n}"} for n in range(4)),
        {"instruction": "list three FRUITS.", "output": "fig"},  # as in the dump
    )
    report = made(tmp_path / "seed", TREES, alpaca)
    assert [source["prompts"] for source in report["sources"]] == [30, 5]
    assert report["prompts"]["read"] == 35 and report["prompts"]["fates"]["kept"] == 28
    assert report["prompts"]["fates"]["repeats an earlier one"] == 2
    ift = read_ift(tmp_path / "seed" / "ift.jsonl")
    assert any(row["id"].startswith("alpaca-") for row in ift)


def test_rows_without_ids_may_come_of_files_with_one_name(tmp_path):
    paths = [tmp_path / folder / "data.jsonl" for folder in ("a", "b", "c")]
    for path in paths:
        path.parent.mkdir()
        rows_in(path, *({"prompt": f"{path.parent.name}{n}", "response": "r"} for n in range(4)))
    report = made(tmp_path / "seed", TREES, *paths)
    assert report["prompts"]["read"] == 30 + 12
    ids = {row["id"].rpartition("-")[0] for row in read_ift(tmp_path / "seed" / "ift.jsonl")}
    assert ids >= {"data", "data.2", "data.3"}


def test_without_ranked_answers_to_spare_there_is_no_such_file(tmp_path):
    plain = rows_in(
        tmp_path / "plain.jsonl",
        {"prompt": "a"},
        {"prompt": "b", "response": "fig"},
        {
            "prompt": "c",
            "chosen": "x",
            "responses": [{"text": t, "rank": ord(t) - 97} for t in "ab"],
        },
    )
    report = made(tmp_path / "s", plain, flags=("--held-out=1", "--ranked=1", "--ift=1"))
    assert report["files"]["eft_ranked"]["prompts"] == 0
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"ift.jsonl", "ranked.jsonl", "held_out.jsonl", "report.json"}


def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, capsys):
    twice = rows_in(tmp_path / "twice.jsonl", {"prompt": "p", "id": "x"})
    other = rows_in(tmp_path / "other.jsonl", {"prompt": "q", "id": "x"})
    broken = rows_in(tmp_path / "broken.jsonl", {"prompt": "p"}, {"prompt": 3})
    full = tmp_path / "full"
    made(full, TREES)
    capsys.readouterr()
    new = tmp_path / "new"
    for sources, out, flags, said in (
        ([TREES], full, SMALL, "full: expected no directory, or an empty one; choose another"),
        ([TREES], new, (), "held_out: 256 asked for, 24 left in these sources; add a source"),
        ([TREES], new, (*SMALL, "--ift", "0"), "ift must be at least 1, found 0"),
        ([twice, other], new, SMALL, f"{other}: expected ids that {twice} has not, found 'x'"),
        ([broken], new, SMALL, "broken.jsonl:2: expected 'prompt' to be a string, found 3; mend"),
        ([tmp_path / "none"], new, SMALL, "none: cannot be read (No such file or directory)"),
        ([tmp_path], new, SMALL, "cannot be read (Is a directory)"),
        ([TREES], broken, SMALL, "broken.jsonl"),
    ):
        assert main([*map(str, sources), "--out", str(out), *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
        assert not new.exists()
