"""Whether a run's rubric fits its seed's judgements and its judges' tokenizers: found before
anything is trained. Knows no step of the loop.
"""

from pathlib import Path

from judge import Rubric, load_rubric
from llama.weights import open_tokenizer, read_checkpoint
from loop.driven import Given
from loop.settings import Settings
from sampling.complete import last_tokens
from seed.rows import refuse, short


def check_rubric(settings: Settings, given: Given) -> None:
    """Raises ValueError for a score of eft.jsonl that the rubric does not offer, and for expected
    scores whose probabilities a judge's tokenizer cannot tell.
    """
    rubric = load_rubric(settings.judging.rubric)
    for line, row in enumerate(given.seed.eft, start=1):
        if not rubric.low <= row["score"] <= rubric.high:
            scale = f"from {rubric.low:g} to {rubric.high:g} ({rubric.name})"
            complaint = f"expected a 'score' {scale}, found {short(row['score'])}"
            refuse(given.inputs["seed"] / "eft.jsonl", line, complaint, "mend the row or the scale")
    if settings.judging.expected:
        _check_endings(given.model, rubric)
        if settings.choice.by == "judge" and settings.choice.judge != "current":
            _check_endings(Path(settings.choice.judge), rubric)


def _check_endings(model: Path, rubric: Rubric) -> None:
    try:
        checkpoint = read_checkpoint(model)
    except ValueError:
        return  # a finished run needs it no more; whoever loads it says what is wrong
    try:
        last_tokens(open_tokenizer(checkpoint), rubric.endings)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
