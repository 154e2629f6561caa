"""What the sieve lets through: well-formed, new, and written by a model that is not lost."""

import random

import pytest

from sampling.sieve import Sieve, looping


def sieve(**changed) -> Sieve:
    keywords = ["image", "Bar chart", "Löwe", ""]
    usual = {"keywords": keywords, "max_words": 50, "similarity": None}
    return Sieve(**usual | {"forbidden": ["Held out prompt one."]} | changed)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Sing", "too_short"),
        ("Sing to me", None),
        (" ".join(map(str, range(50))), None),
        ("la " * 51, "too_long"),
        ("Draw an IMAGE, please", "keyword"),
        ("Draw an imaginary cat", None),  # whole words only
        ("Sing of the löwe", "keyword"),
        ("Sing of the Löwen", None),
        ("Draw a bar  CHART of it", "keyword"),
        ("Chart the bar on the corner", None),
    ],
)
def test_unfit(text: str, reason: str | None) -> None:
    assert sieve().unfit(text) == reason


def test_known() -> None:
    known = sieve(similarity=0.8)
    known.keep("Name two fruits and a vegetable.")
    assert known.known("name  two FRUITS and a vegetable.") == "repeat"
    assert known.known("held out prompt ONE.") == "repeat"
    assert known.known("Name two fruits and a mineral!") == "similar"
    assert known.known("Name three trees or one shrub.") is None
    only_repeats = sieve()
    only_repeats.keep("Name two fruits and a vegetable.")
    assert only_repeats.known("Name two fruits and a mineral!") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tell me me me a tale", "looping"),
        ("say this now say this now say this now", "looping"),
        ("say this now say this now and go", None),
        ("no no it is fine", None),
        ("### --- *** a b !!! ???", "garbled"),
        ("Solve 3 * (4 + 5) - 6 / 2 = ?", None),
        ("Расскажи мне длинную сказку", "foreign"),
        ("Say привет to my friend from Russia", None),
        ("give me a café in Tromsø", None),
    ],
)
def test_what_a_lost_model_writes_is_left_out(text: str, reason: str | None) -> None:
    kept = sieve()
    kept.keep("The quick brown fox jumps over the lazy dog, 3 times.")
    assert kept.unfit(text) == reason


def test_the_script_of_the_seed_is_nobodys_garbage() -> None:
    russian = sieve()
    for text in ("Расскажи мне длинную сказку", "Съешь ещё этих мягких французских булок"):
        russian.keep(text)
    assert russian.unfit("Напиши мне письмо") is None
    assert russian.unfit("Write me a letter") == "foreign"
    assert sieve().unfit("Напиши мне письмо") is None  # nothing is kept: no script is foreign


def test_loops_against_brute_force() -> None:
    draw = random.Random(3)
    for _ in range(2000):
        said = [draw.choice("ab") for _ in range(draw.randint(0, 9))]
        places = range(len(said))
        expected = any(
            said[i : i + n] == said[i + n : i + 2 * n] == said[i + 2 * n : i + 3 * n]
            for n in range(1, 4)
            for i in places
            if i + 3 * n <= len(said)
        )
        assert looping(said) == expected
