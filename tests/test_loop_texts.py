"""Lengths and diversity of answers, and how near one set of prompts lies to another."""

import numpy as np
import pytest

from loop.overlap import nearest, plane, prompt_overlap, vectors
from loop.texts import distinct, quantiles, text_signs


def answers(*texts, prompt="p"):
    return [
        {"prompt_id": prompt, "text": text, "token_count": 2 * len(text.split()), "finished": True}
        for text in texts
    ]


def test_by_hand():
    rows = answers("a b c", "a b d") + answers("x", "x y z x", prompt="q")
    rows[0]["finished"] = False
    found = text_signs(rows, 0.95)
    assert found["mean_words"] == 11 / 4 and found["mean_tokens"] == 22 / 4
    assert found["cut_off"] == 1 / 4
    # LCS "a b" of 3 and 3 words: 4/6; "x" of 1 and 4: 2/5
    assert found["self_overlap"] == pytest.approx((4 / 6 + 2 / 5) / 2)
    assert found["distinct_1"] == 7 / 11  # a b c d x y z
    assert found["distinct_2"] == 6 / 7  # ab bc bd xy yz zx: ab twice
    assert found["words_quantiles"]["50"] == 3.0


def test_one_answer_a_prompt_overlaps_with_nothing():
    assert text_signs(answers("a b"), 0.95)["self_overlap"] is None


def test_a_parrot_has_no_diversity():
    parrot = text_signs(answers(*["one and the same"] * 10), 0.95)
    assert parrot["self_overlap"] == 1.0
    assert parrot["distinct_1"] == 4 / 40 and parrot["distinct_2"] == 3 / 30


def test_distinct_of_nothing_is_unknown():
    assert distinct([], 1) is None and distinct(["one"], 2) is None
    assert quantiles([]) == {}


def test_the_interval_is_over_prompts():
    """Prompts that differ, answers that do not: the width comes from the prompts alone."""
    rows = [row for p in range(6) for row in answers(*["w " * p] * 50, prompt=str(p))]
    low, high = text_signs(rows, 0.95)["mean_words_ci"]
    assert high - low > 2


def test_vectors_have_length_one_and_rare_words_weigh_more():
    found = vectors(["the cat", "the dog", "the cow", "???"])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 0])
    the, cat = sorted(value for value in found[0] if value)
    assert cat / the == pytest.approx((1 + np.log(4)) / (1 + np.log(4 / 3)))


def test_nearest_by_brute_force_over_blocks(monkeypatch):
    monkeypatch.setattr("loop.overlap.BLOCK", 3)
    draw = np.random.default_rng(0)
    a, b = draw.random((8, 5)), draw.random((4, 5))
    assert nearest(a, b) == pytest.approx([max(x @ y for y in b) for x in a])
    others = [max(x @ y for j, y in enumerate(a) if j != i) for i, x in enumerate(a)]
    assert nearest(a, a, same=True) == pytest.approx(others)


def test_a_copy_is_at_one_and_a_stranger_at_nothing():
    ift = ["name three fruits", "write a poem", "sum two numbers"]
    found = prompt_overlap({"copy": ift, "strange": ["quantum flux"], "IFT": ift}, "IFT")
    assert list(found["nearest"]["copy"].values()) == pytest.approx([1.0] * 5)
    assert set(found["nearest"]["strange"].values()) == {0.0}
    assert max(found["nearest"]["IFT"].values()) < 0.5  # itself left out
    assert {name: len(points) for name, points in found["map"].items()} == {
        "copy": 3, "strange": 1, "IFT": 3,
    }  # fmt: skip
    assert found["map"]["copy"] == found["map"]["IFT"]


def test_without_seed_prompts_there_is_nothing_to_be_near():
    assert prompt_overlap({"IFT": [], "M1": ["a b"]}, "IFT")["nearest"] == {}


def test_the_plane_keeps_the_most_variance():
    draw = np.random.default_rng(1)
    points = draw.normal(size=(50, 6)) * [5, 3, 1, 0.5, 0.2, 0.1]
    centred = points - points.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)[:2]
    assert np.linalg.norm(plane(points), axis=0) == pytest.approx(singular)
    assert plane(np.ones((3, 1))).shape == (3, 2)  # one word in all
