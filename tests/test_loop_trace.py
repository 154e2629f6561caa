"""A pair can be followed back to its prompt, its rivals and every judgement."""

import pytest

from loop.__main__ import main
from loop.files import jsonl_bytes
from loop.trace import trace

ROWS = {
    "prompts": [
        {"id": "r0.1", "prompt": "Sing.", "demonstrations": ["ift-3"]},
        {"id": "r1.2", "prompt": "Dance.", "demonstrations": ["r0.1", "ift-7"]},
    ],
    "responses": [
        {"id": f"{owner}.{k}", "prompt_id": owner, "k": k, "text": text, "finished": k < 2}
        for owner in ("r0.1", "r1.2")
        for k, text in enumerate((f"good {owner}", f"bad {owner}", f"cut {owner}"))
    ],
    "judgements": [
        {"id": f"{owner}.{k}.{j}", "response_id": f"{owner}.{k}", "k": j, "text": text, "score": s}
        for owner in ("r0.1", "r1.2")
        for k, scores in enumerate(((5, 4), (1, None), ()))
        for j, s in enumerate(scores)
        for text in (f"because {owner}.{k}.{j}\nScore: {s}",)
    ],
    "pairs": [
        {"id": f"{owner}", "prompt": text, "chosen_id": f"{owner}.0", "rejected_id": f"{owner}.1"}
        for owner, text in (("r0.1", "Sing."), ("r1.2", "Dance."))
    ],
}


@pytest.fixture
def directory(tmp_path):
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl_bytes(rows))
    return tmp_path


def test_a_pair_is_followed_to_everything_that_made_it(directory):
    assert trace(directory, "r1.2").splitlines() == [
        "prompt r1.2: Dance.",
        "  written after the manner of",
        "    r0.1: Sing.",
        "    ift-7: (seed)",
        "  answer r1.2.0: 4.50 CHOSEN",
        "      good r1.2",
        "    judgement 0: 5",
        "      because r1.2.0.0",
        "      Score: 5",
        "    judgement 1: 4",
        "      because r1.2.0.1",
        "      Score: 4",
        "  answer r1.2.1: 1.00 REJECTED",
        "      bad r1.2",
        "    judgement 0: 1",
        "      because r1.2.1.0",
        "      Score: 1",
        "    judgement 1: no score",
        "      because r1.2.1.1",
        "      Score: None",
        "  answer r1.2.2: no score, cut off",
        "      cut r1.2",
    ]


def test_what_is_not_there_is_told(directory):
    with pytest.raises(ValueError, match=r"pairs.jsonl: no pair 'x'; it holds r0.1, r1.2, …"):
        trace(directory, "x")
    (directory / "responses.jsonl").unlink()
    with pytest.raises(ValueError, match=r"responses.jsonl: there is no such file"):
        trace(directory, "r0.1")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("damage", ["half a line", "empty", "no id", "none of it"])
def test_a_damaged_file_is_one_line_that_names_it(directory, name, damage, capsys):
    path = directory / f"{name}.jsonl"
    whole = path.read_bytes()
    left = {"half a line": whole[:-9], "empty": b"", "no id": whole.replace(b'"id"', b'"di"')}
    path.write_bytes(left.get(damage, b"".join(whole.splitlines(True)[:1])))
    if name == "judgements" and damage in ("empty", "none of it"):
        return  # an answer may have none
    assert main(["trace", str(directory), "r1.2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}:")


def test_the_face_prints_it(directory, capsys):
    assert main(["trace", str(directory), "r0.1"]) == 0
    assert capsys.readouterr().out.startswith("prompt r0.1: Sing.\n")
    assert main(["trace", str(directory), "x"]) == 2
    assert "no pair 'x'" in capsys.readouterr().err
