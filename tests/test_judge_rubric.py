"""The judge's prompts: what they ask for, and that no text can reach outside its place."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge import Rubric, load_rubric, parse_choice, parse_score
from judge.rubric import PROMPTS, SCALES, fill, read_template
from judge.score import read_score


@pytest.mark.parametrize("name", SCALES)
def test_built_in_rubrics_render(name: str) -> None:
    prompt = load_rubric(name).render("Name a fruit.", "pear")
    assert "Name a fruit." in prompt and "pear" in prompt
    assert not re.search(r"\{\w+\}", prompt)


def test_short_rubric_is_what_the_embedded_model_learnt() -> None:
    prompt = load_rubric("additive_short").render("Name a fruit.", "pear.")
    assert prompt == ("Review: kind, count, rule, order, form.\nTask: Name a fruit.\nAnswer: pear.")


@pytest.mark.parametrize("name", ["additive", "multiple_choice"])
def test_last_line_of_the_prompt_is_the_form_of_the_reply(name: str) -> None:
    rubric = load_rubric(name)
    last = rubric.template.splitlines()[-1]
    assert last == "Score: N"
    for score in (rubric.low, rubric.high):
        assert parse_score(last.replace("N", f"{score:g}"), rubric.low, rubric.high) == score


def test_pairwise_prompt_shows_the_verdicts_that_are_read() -> None:
    template = read_template(PROMPTS / "pairwise.txt")
    assert [parse_choice(line) for line in template.splitlines()[-3:]] == ["A", "B", "tie"]
    assert all(f"{{{place}}}" in template for place in ("prompt", "first", "second"))


def test_every_prompt_file_is_known() -> None:
    assert {path.stem for path in PROMPTS.glob("*.txt")} == {
        *SCALES,
        "pairwise",
        "meta",
        "meta_short",
    }


HEADED = "score: Rating: [[{score}]]\nscale: 1 to 10\n---\n{prompt} / {response}"


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(HEADED, encoding="utf-8-sig")
    assert (load_rubric(file).high, load_rubric(file).render("a", "b")) == (10, "a / b")


def test_a_file_may_say_its_pattern_and_its_scale(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(HEADED)
    rubric = load_rubric(file)
    assert (rubric.low, rubric.high, rubric.render("a", "b")) == (1, 10, "a / b")
    assert rubric.endings[::9] == ["Rating: [[1", "Rating: [[10"]
    replies = {"Fine.\nRating: [[7]]\n": 7.0, " Rating: [[ 7.5 ]]": 7.5, "Rating: [[10]]": 10.0}
    replies |= dict.fromkeys(
        ("Rating: [[11]]", "Rating: [[0]]", "Rating: 7", "Score: 7", "", "Rating: [[7]] so"), None
    )
    assert {reply: read_score(reply, rubric) for reply in replies} == replies
    file.write_text("scale: 0 to 3\n---\n{prompt} / {response}")
    assert read_score("Score: 3", load_rubric(file)) == 3.0
    assert read_score("Score: 4", load_rubric(file)) is None
    file.write_text("{prompt}\n---\nscore: {response}")  # a rule in the text is no head
    assert load_rubric(file).template.startswith("{prompt}\n---")


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ("scale: one to ten", r"mine.txt:1: expected .* found 'scale: one to ten'"),
        ("score: {score}\nrange: 1", r"mine.txt:2: expected .* found 'range: 1'"),
        ("score: Rating", r"mine.txt: expected {score} once in score: Rating"),
        ("scale: 5 to 1", r"mine.txt: expected a scale that rises, found 5.0 to 1.0"),
    ],
)
def test_a_head_that_cannot_be_read(head: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(f"{head}\n---\n{{prompt}} {{response}}")
    with pytest.raises(ValueError, match=complaint):
        load_rubric(file)
    file.write_text(f"{head}\n{{prompt}} {{response}}")
    with pytest.raises(ValueError, match=r"mine.txt: expected a line ---"):
        load_rubric(file)


def test_braces_in_texts_are_not_places() -> None:
    rubric = Rubric("test", "{prompt} | {response} | {other} {")
    assert rubric.render("{response}", "{prompt}{0}") == "{response} | {prompt}{0} | {other} {"


def test_two_passes_would_leak() -> None:
    """Negative control: replacing one place after the other puts the answer into the request."""
    template = "{prompt} | {response}"
    assert template.replace("{prompt}", "{response}").replace("{response}", "x") == "x | x"
    assert fill(template, prompt="{response}", response="x") == "{response} | x"


@given(st.text(), st.text())
def test_texts_are_taken_as_they_are(prompt: str, response: str) -> None:
    assert (
        Rubric("test", "<{prompt}|{response}>").render(prompt, response) == f"<{prompt}|{response}>"
    )


def test_rubric_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Grade {response} as an answer to {prompt}.\n", encoding="utf-8")
    rubric = load_rubric(path)
    assert (rubric.low, rubric.high) == (0, 5)
    assert rubric.render("p", "r") == "Grade r as an answer to p."


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"Grade {response}.", r"mine\.txt.*lacks \{prompt\}"),
        (b"Grade {prompt}.", r"mine\.txt.*lacks \{response\}"),
        (b"\xff {prompt} {response}", r"mine\.txt.*byte 0 is not UTF-8"),
    ],
)
def test_unusable_rubric_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_rubric(path)


def test_unknown_rubric_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="additve: no such rubric; give one of additive, "):
        load_rubric("additve")
