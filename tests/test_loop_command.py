"""What is impossible is told in one line, before anything is trained."""

import pytest

from loop.options import parse_arguments


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "-1"], "the flags: seed must be at least 0, found -1"),
        (["--set", "prompts.similarity=0"], "prompts.similarity must be above 0 and at most 1"),
        (["--set", "prompts.similarity=1.5"], "prompts.similarity must be above 0 and at most 1"),
        (
            ["--set", "prompts.max_words=2", "--set", "prompts.min_words=3"],
            "--set prompts.min_words=3: prompts.min_words must be at most max_words, 2, found 3",
        ),
        (["--set", "prompts.max_words=2"], "prompts.min_words must be at most max_words, 2"),
    ],
)
def test_an_impossible_setting_is_refused(flags: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="at") as caught:
        parse_arguments(flags)
    assert said in str(caught.value)
    assert parse_arguments(["--set", "prompts.similarity=1.0"]).prompts.similarity == 1
