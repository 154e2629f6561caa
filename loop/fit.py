"""Whether a run's settings fit its seed: the rubric its judgements (and its judges' tokenizers),
the demonstrations its prompts. Found before anything is trained. Knows no step of the loop.
"""

from pathlib import Path

from judge import Rubric, load_rubric
from llama.weights import open_tokenizer, read_checkpoint
from loop.driven import Given
from loop.settings import Settings
from sampling.complete import last_tokens
from sampling.self_instruct import fit_to_show, one_line
from sampling.sieve import Sieve
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


def check_shown(settings: Settings, given: Given) -> None:
    """Raises ValueError where the writer of prompts is to be shown more of the seed's than there
    are that pass the filters. M1 alone writes none.
    """
    how, ift = settings.prompts, given.seed.ift
    if settings.iterations < 2:
        return
    sieve = Sieve(**how.filters | {"similarity": None})  # it costs time, and leaves none unshown
    for row in ift:
        sieve.keep(one_line(row["prompt"]))
    try:
        fit_to_show(ift, sieve, how.n_seed + how.n_made)
    except ValueError as error:
        shown = f"prompts.n_seed={how.n_seed} and prompts.n_made={how.n_made}"
        raise ValueError(f"{given.inputs['seed'] / 'ift.jsonl'}: {shown}: {error}") from None


def _check_endings(model: Path, rubric: Rubric) -> None:
    try:
        checkpoint = read_checkpoint(model)
    except ValueError:
        return  # a finished run needs it no more; whoever loads it says what is wrong
    try:
        last_tokens(open_tokenizer(checkpoint), rubric.endings)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
