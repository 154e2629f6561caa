"""Good rows come back whole; each kind of damage is refused with file, line and remedy."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seed.read import read_eft, read_held_out, read_ift, read_ranked, read_seed

IFT = {"id": "i1", "prompt": "Name a fruit.", "response": "fig"}
EFT = {"id": "e1", "prompt": "p", "response": "", "judgement": "Good. Score: 4", "score": 4.5}
RANKED = {
    "id": "r1",
    "prompt": "q",
    "responses": [{"text": "a", "rank": 0}, {"text": "", "rank": 1}],
}
HELD_OUT = {"id": "h1", "prompt": "s"}
EFT_RANKED = RANKED | {"id": "l1", "prompt": "t"}
READERS = {
    "ift": (read_ift, IFT),
    "eft": (read_eft, EFT),
    "ranked": (read_ranked, RANKED),
    "held_out": (read_held_out, HELD_OUT),
    "eft_ranked": (read_ranked, EFT_RANKED),
}


@pytest.fixture
def refusal(tmp_path):
    """The complaint of a reader about these bytes, without the path."""

    def read(name, data):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(data)
        with pytest.raises(ValueError) as caught:
            READERS[name][0](path)
        assert str(caught.value).startswith(f"{path}:")
        assert "; " in str(caught.value)  # a remedy
        return str(caught.value).removeprefix(f"{path}:")

    return read


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", READERS)
def test_good_rows_come_back_whole_and_in_order(tmp_path, name):
    read, row = READERS[name]
    rows = [row, row | {"id": "x\u2028y", "source": {"page": 3}}]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*rows))
    assert read(path) == rows
    path.write_bytes(json.dumps(row).encode())  # no newline at the end
    assert read(path) == [row]


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "1: expected at least one row"),
        (b"\n", "1: expected a JSON object, found a blank line"),
        (lines(IFT) + b"   \n" + lines(IFT), "2: expected a JSON object, found a blank line"),
        (lines(IFT) + b"\xff\n", "2: expected UTF-8, found the byte 0xff at position 0"),
        (lines(IFT)[:-9], '1: expected a JSON object, found b\'{"id"'),
        (b"[1]\n", "1: expected a JSON object, found [1]"),
        (b"[" * 100_000 + b"\n", "1: expected"),
        (b'{"id": NaN}', "1: expected plain JSON (NaN is no JSON number)"),
        (b'{"id": ' + b"9" * 5000 + b"}", "1: expected plain JSON"),
        (lines(IFT, IFT), "2: expected an id of its own, found 'i1' as in line 1"),
    ],
)
def test_damage_is_refused_by_line(refusal, data, said):
    assert refusal("ift", data).startswith(said)


@pytest.mark.parametrize(
    "name, changed, said",
    [
        ("ift", {"response": " "}, "'response' to be a string that is not blank, found ' '"),
        ("ift", {"id": 7}, "'id' to be a string that is not blank, found 7"),
        ("ift", {"id": ["7"]}, "'id' to be a string that is not blank, found ['7']"),
        ("ift", {"prompt": "\ud800"}, "'prompt' to be a string"),
        ("ift", {"system": None}, "'system' to be a string"),
        ("eft", {"response": None}, "'response' to be a string, found None"),
        ("eft", {"score": True}, "'score' to be a number, found True"),
        ("eft", {"score": "4"}, "'score' to be a number, found '4'"),
        ("ranked", {"responses": []}, "'responses' to be a list of two or more"),
        ("ranked", {"responses": RANKED["responses"][:1]}, "'responses' to be a list of two"),
        ("ranked", {"responses": [{"text": "a", "rank": -1}] * 2}, "'responses' to be a list"),
        ("ranked", {"responses": [{"text": "a", "rank": 0.5}] * 2}, "'responses' to be a list"),
        ("ranked", {"responses": ["a", "b"]}, "'responses' to be a list"),
        ("held_out", {"prompt": ""}, "'prompt' to be a string that is not blank"),
    ],
)
def test_a_mistyped_field_is_refused(refusal, name, changed, said):
    row = READERS[name][1]
    assert refusal(name, lines(row, row | {"id": "2"} | changed)).startswith(f"2: expected {said}")


def test_a_score_is_on_the_scale_of_whatever_rubric(refusal, tmp_path):
    path = tmp_path / "rows.jsonl"
    for score in (10, -1, 10**400):  # `loop.fit` knows which are its own
        path.write_bytes(lines(EFT | {"score": score}))
        assert read_eft(path)[0]["score"] == score
    huge = lines(EFT).replace(b"4.5", b"1e999")
    assert refusal("eft", huge).startswith("1: expected 'score' to be a number, found inf")


@pytest.mark.parametrize("name", READERS)
def test_each_field_is_missed(refusal, name):
    row = READERS[name][1]
    for field in row:
        rest = {key: value for key, value in row.items() if key != field}
        assert refusal(name, lines(rest)).startswith(f"1: expected a field '{field}', ")


def test_a_file_that_is_not_there_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="ift.jsonl: cannot be read .No such file"):
        read_seed(tmp_path)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_read_or_refuse(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"rows.jsonl:\d+: expected .*; "):
        read_ift(path)


def test_a_long_line_is_refused_in_few_words(refusal):
    assert len(refusal("ift", b'{"id": "' + b"x" * 10_000_000 + b"\n")) < 200


def seed_directory(directory, **changed):
    for name, (_, row) in READERS.items():
        (directory / f"{name}.jsonl").write_bytes(lines(row | changed.get(name, {})))
    return directory


def test_a_seed_directory_is_read(tmp_path):
    seed = read_seed(seed_directory(tmp_path))
    assert (seed.ift, seed.eft, seed.ranked, seed.held_out) == ([IFT], [EFT], [RANKED], [HELD_OUT])
    assert seed.eft_ranked == [EFT_RANKED]


def test_a_seed_directory_without_answers_to_practise_on_is_read(tmp_path):
    (seed_directory(tmp_path) / "eft_ranked.jsonl").unlink()
    assert read_seed(tmp_path).eft_ranked == []


def test_without_judgements_there_must_be_answers_to_make_them_of(tmp_path):
    (seed_directory(tmp_path) / "eft.jsonl").unlink()
    assert read_seed(tmp_path).eft == [] and read_seed(tmp_path).eft_ranked == [EFT_RANKED]
    (tmp_path / "eft_ranked.jsonl").unlink()
    with pytest.raises(ValueError, match="eft.jsonl: cannot be read .No such file"):
        read_seed(tmp_path)


@pytest.mark.parametrize("measured", ["held_out", "ranked"])
@pytest.mark.parametrize("learnt", ["ift", "eft", "eft_ranked"])
def test_what_is_measured_is_not_learnt_from(tmp_path, measured, learnt):
    seed_directory(tmp_path, **{measured: {"prompt": READERS[learnt][1]["prompt"]}})
    with pytest.raises(
        ValueError, match=f"{measured}.jsonl:1: expected .* {learnt}.jsonl:1; remove"
    ):
        read_seed(tmp_path)


@pytest.mark.parametrize("measured", ["held_out", "ranked"])
def test_what_is_measured_chooses_no_checkpoint(tmp_path, measured):
    seed_directory(tmp_path)
    row = {"id": "v", "prompt": READERS[measured][1]["prompt"]}
    (tmp_path / "validation.jsonl").write_bytes(lines({"id": "u", "prompt": "other"}, row))
    with pytest.raises(ValueError, match=f"{measured}.jsonl:1: .* of validation.jsonl:2; remove"):
        read_seed(tmp_path)


@pytest.mark.parametrize("same", ["Name a fruit. ", "name a fruit.", " Name\na  fruit."])
def test_case_and_spaces_make_no_other_prompt(tmp_path, same):
    seed_directory(tmp_path, held_out={"prompt": same})
    with pytest.raises(ValueError, match="held_out.jsonl:1: .* of ift.jsonl:1; remove"):
        read_seed(tmp_path)
