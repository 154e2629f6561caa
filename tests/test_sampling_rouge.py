"""ROUGE-L against the textbook and a reference; the index against comparing with everything."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling.rouge import Index, rouge_l, words

WORDS = st.lists(st.sampled_from("abcdef"), max_size=90)


def table_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """The quadratic table that everybody knows."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def random_text(draw: random.Random, longest: int = 30) -> str:
    vocabulary = [
        "Name",
        "two",
        "fruits",
        "that",
        "don't",
        "start-with",
        "A,",
        "b",
        "(3)",
        "é",
        "x2",
    ]
    return " ".join(draw.choices(vocabulary, k=draw.randint(0, longest)))


def test_words() -> None:
    assert words("Don't STOP: 3.5 naïve_x") == ["don", "t", "stop", "3", "5", "na", "ve", "x"]
    assert words("…") == []


def test_worked_numbers() -> None:
    # The LCS of "a b c d" and "a c x d y" is "a c d": precision 3/5, recall 3/4, F1 2/3.
    assert rouge_l("abcd", "acxdy") == pytest.approx(2 / 3)
    assert rouge_l("abc", "abc") == 1
    assert rouge_l("abc", "xyz") == 0
    assert rouge_l("", "abc") == rouge_l("abc", "") == rouge_l("", "") == 0


@given(WORDS, WORDS)
def test_rouge_against_the_table(a: list[str], b: list[str]) -> None:
    expected = 2 * table_lcs(a, b) / (len(a) + len(b)) if a and b else 0
    assert rouge_l(a, b) == rouge_l(b, a) == expected


def test_rouge_against_the_reference_package() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(0)
    for _ in range(1000):
        a, b = random_text(draw), random_text(draw)
        expected = scorer.score(a, b)["rougeL"].fmeasure
        assert rouge_l(words(a), words(b)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("longest", [12, 100])  # 100: more words than a machine integer has bits
def test_index_against_comparing_with_everything(threshold: float, longest: int) -> None:
    draw = random.Random(longest)
    index, kept = Index(threshold), []
    answers = []
    for _ in range(150):
        text = draw.choices("abcdefghijkl"[: draw.randint(2, 12)], k=draw.randint(0, longest))
        if kept and draw.random() < 0.2:  # a near copy: some words of a kept text left out
            text = [word for word in draw.choice(kept) if draw.random() < draw.choice([0.8, 1])]
        expected = any(rouge_l(text, other) >= threshold for other in kept)
        assert index.similar(text) == expected
        answers.append(expected)
        if not expected or draw.random() < 0.2:
            index.add(text)
            kept.append(text)
    assert len(index) == len(kept)
    assert len(set(answers)) == 2  # both answers occurred, else nothing was tested


def test_threshold_itself_is_similar() -> None:
    index = Index(0.7)
    index.add([*"abcdefg", "1", "2", "3"])
    assert index.similar([*"abcdefg", "x", "y", "z"])  # 2·7 / 20
    assert not index.similar([*"abcdef", "w", "x", "y", "z"])  # 2·6 / 20


def test_order_of_words_matters() -> None:
    """Sharing all words passes the index's bound, and must not be enough."""
    index = Index(0.7)
    index.add(list("abcdefgh"))
    assert not index.similar(list("hgfedcba"))


def test_text_without_words_is_like_nothing() -> None:
    index = Index(0.1)
    assert not index.similar([])
    index.add([])
    index.add(["a"])
    assert not index.similar([])
    assert not index.similar(["b"])
    assert index.similar(["a"])


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        Index(threshold)


def test_more_kept_texts_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sampling.rouge.CHUNK", 7)
    draw, index = random.Random(3), Index(0.9)
    target = list("abcdefghij")
    for _ in range(100):
        index.add(draw.sample(target, k=10))
    assert not index.similar(list("jihgfedcba"))
    index.add(target)
    for _ in range(100):
        index.add(draw.sample(target, k=10))
    assert index.similar(target)
