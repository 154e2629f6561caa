"""What a run may choose, as one frozen tree; a preset, a TOML file and flags all say the same
things. Knows no model, no data and no file. An impossible value is a ValueError whose first word
is the field.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dpo.settings import MAY_CHANGE, TrainSettings
from llama.layout import Layout

DECODING = ("temperature", "top_p", "max_new_tokens")
FILTERS = ("min_words", "max_words", "keywords", "similarity")
WRITING = ("count", *DECODING, "n_seed", "n_made", "round_size", "max_rounds", "chat")
CHOOSING = ("per_prompt", "margin", "shorter_within")
WAYS_TO_CHOOSE = ("last", "judge", "accuracy")
WRITERS = ("base", "current")  # any other writer of prompts is a directory
# on the same run directory: how far it goes, and what the machine bears in training
MAY_DIFFER = (
    *("iterations", "until_plateau"),
    *(f"{part}.{name}" for part in ("sft", "dpo") for name in MAY_CHANGE),
)
UNTIL_PLATEAU = 10  # models at most, where nothing else is said
_PLACES = ("run", "model", "seed_data")  # where things lie, which does not make another run


@dataclass(frozen=True)
class Prompts:
    """Step 1 of an iteration: new prompts, few-shot."""

    count: int = 4000  # new prompts an iteration
    writer: str = "base"  # base: M0, fixed · current: M_t · or the directory of a fixed model
    chat: bool = False  # the writer is asked under Llama 2's chat format; else it continues a list
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 256
    n_seed: int = 6  # demonstrations from the seed
    n_made: int = 2  # demonstrations from the prompts made so far
    similarity: float | None = 0.7  # ROUGE-L F1 with one kept that makes a repeat; none: no limit
    min_words: int = 3
    max_words: int = 150
    keywords: tuple[str, ...] = ()  # words or phrases; a prompt with one is left out
    round_size: int = 256  # requests a round; later rounds show what earlier ones made
    max_rounds: int = 100  # after these the run goes on with as many prompts as there are

    def __post_init__(self) -> None:
        _at_least(self, 1, "count", "max_new_tokens", "min_words", "max_words")
        _at_least(self, 1, "round_size", "max_rounds")
        _at_least(self, 0, "n_seed", "n_made")
        _decodes(self)
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, found {self.similarity!r}")
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words must be at most max_words, {self.max_words}, found {self.min_words}"
            )

    @property
    def filters(self) -> dict[str, Any]:
        """What `sampling.sieve.Sieve` is made with."""
        return _picked(self, FILTERS)

    @property
    def writing(self) -> dict[str, Any]:
        """What `sampling.self_instruct.write_prompts` is called with."""
        return _picked(self, WRITING)


@dataclass(frozen=True)
class Responses:
    """Step 2: candidates."""

    n: int = 4  # a prompt
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        _at_least(self, 2, "n")  # one answer is neither better nor worse
        _at_least(self, 1, "max_new_tokens")
        _decodes(self)

    @property
    def decoding(self) -> dict[str, Any]:
        """What every sampling call is told."""
        return _picked(self, DECODING)


@dataclass(frozen=True)
class Judging:
    """Step 3: the model's own scores, in the loop and in the evaluation of the judge."""

    rubric: str = "additive"  # additive, additive_short, multiple_choice (judge/prompts), or a file
    k: int = 3  # judgements of a response, averaged
    eft_rows: int | None = None  # most rows to be made where the seed has no eft.jsonl; none: all
    expected: bool = False  # the score is the mean over all the judge might have written there
    practice: int = 0  # judgements of each answer that people ranked; what agrees is learnt
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        _at_least(self, 1, "k", "max_new_tokens", "eft_rows")
        _at_least(self, 0, "practice")
        _decodes(self)

    @property
    def decoding(self) -> dict[str, Any]:
        """What every sampling call is told."""
        return _picked(self, DECODING)

    @property
    def asking(self) -> dict[str, Any]:
        """What `judge.judge_responses` is told."""
        return _picked(self, (*DECODING, "expected"))


@dataclass(frozen=True)
class Pairs:
    """Step 4: what becomes a preference."""

    minimum: int = 1  # fewer pairs than this end the run with the reason, instead of a DPO on noise
    per_prompt: int = 1  # at most; the second is made of the answers that the first left over
    margin: float = 0.0  # scores that differ by less make no pair; equal ones never do
    shorter_within: float | None = None  # ρ of `judge.pairs.length_controlled`; none: best, worst

    def __post_init__(self) -> None:
        _at_least(self, 1, "minimum", "per_prompt")
        _at_least(self, 0, "margin", "shorter_within")
        if self.shorter_within is not None and self.shorter_within >= 0.5:
            raise ValueError(f"shorter_within must be below 0.5, found {self.shorter_within!r}")

    @property
    def choosing(self) -> dict[str, Any]:
        """What `judge.answer_pairs` is told."""
        return _picked(self, CHOOSING)


@dataclass(frozen=True)
class Meta:
    """Meta-Rewarding: the judge is rewarded too, by the model as a judge of judgements."""

    prompts: int = 0  # an iteration, each with its most disputed answer; 0: no Meta-Rewarding
    iterations: int = 2  # the first ones, which have judgement pairs beside the answer pairs
    template: str = "meta"  # a name in judge/prompts, or a file
    practice: bool = False  # learn it from people's ranks: with judging.practice, as many rounds
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        _at_least(self, 0, "prompts")
        _at_least(self, 1, "iterations", "max_new_tokens")


@dataclass(frozen=True)
class Choice:
    """Which checkpoint of a DPO training becomes the next model."""

    by: str = "last"  # last · judge: validation answers' scores · accuracy: on pairs held back
    every: int = 200  # steps from one candidate to the next
    judge: str = "current"  # current: M_t, which wrote the pairs · or the directory of a model
    prompts: int = 253  # at most, of validation.jsonl
    hold_back: int = 10  # of so many pairs one, to measure the accuracy on

    def __post_init__(self) -> None:
        _at_least(self, 1, "every", "prompts")
        _at_least(self, 2, "hold_back")
        if self.by not in WAYS_TO_CHOOSE:
            raise ValueError(f"by must be one of {', '.join(WAYS_TO_CHOOSE)}, found {self.by!r}")


@dataclass(frozen=True)
class Evaluation:
    """Both axes, after each iteration."""

    instructions: int | None = None  # held-out instructions answered; none: all
    ranked: int | None = None  # held-out ranked sets judged; none: all
    samples: int = 4  # sampled answers an instruction, beside the greedy one
    temperature: float = 0.7
    top_p: float = 0.9
    drift: int = 128  # prompts that KL to M1 is estimated on; 0: it is not
    level: float = 0.95  # of the intervals

    def __post_init__(self) -> None:
        _at_least(self, 1, "instructions", "ranked", "samples")
        _at_least(self, 0, "drift")
        _decodes(self)
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, found {self.level!r}")


@dataclass(frozen=True)
class Machine:
    """What the machines bear; it changes the time that a run takes, not what comes out, but for the
    rounding of another order of adding.
    """

    shard: str = "all"  # in training: a copy of the weights across all ranks, or on each machine
    offload: bool = False  # in training: what a GPU holds of weights and moments waits beside it
    sample_tp: int | None = (
        None  # ranks that hold a model together to sample; none: what memory asks
    )
    slots: int | None = None  # samples decoded side by side; none: what suits the model
    unit: int = 2048  # items of a stage that are kept at a time: what an interruption costs at most
    timeout_s: float = 1800.0  # how long a rank waits for the others before it gives up

    def __post_init__(self) -> None:
        _at_least(self, 1, "sample_tp", "slots", "unit", "timeout_s")
        Layout(self.shard, self.offload)  # refuses what there is not

    @property
    def layout(self) -> Layout:
        """What `llama.parallel.start` is told."""
        return Layout(self.shard, self.offload)


@dataclass(frozen=True)
class Settings:
    """Everything that a run may choose. Without `model` and `seed_data` it is the embedded
    world.
    """

    run: str = "runs/world"
    model: str | None = None  # M0, in Hugging Face or Meta layout; none: the embedded base model
    seed_data: str | None = None  # a directory of .jsonl as `seed.read` says; none: embedded
    iterations: int = 3  # models made: M1 by SFT, each further one by DPO
    until_plateau: bool = False  # fewer, if neither axis improves any more: docs/evaluation.md
    seed: int = 0
    dtype: str = "float32"  # of the computation: float32 or bfloat16
    sft: TrainSettings = field(default_factory=lambda: TrainSettings(learning_rate=5.5e-6))
    prompts: Prompts = field(default_factory=Prompts)
    responses: Responses = field(default_factory=Responses)
    judging: Judging = field(default_factory=Judging)
    pairs: Pairs = field(default_factory=Pairs)
    meta: Meta = field(default_factory=Meta)
    dpo: TrainSettings = field(default_factory=lambda: TrainSettings(learning_rate=1e-6))
    choice: Choice = field(default_factory=Choice)
    evaluation: Evaluation = field(default_factory=Evaluation)
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        _at_least(self, 1, "iterations")
        _at_least(self, 0, "seed")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, found {self.dtype!r}")
        for name in ("loss", "beta", "flipped", "gamma", "nll_weight", "replay_weight"):
            if getattr(self.sft, name) != getattr(TrainSettings, name):
                raise ValueError(
                    f"sft.{name} means nothing: SFT has no pairs; did you mean dpo.{name}?"
                )

    def identity(self) -> dict[str, Any]:
        """What makes a run this run and no other, as plain values: all but places and machine."""
        tree = asdict(self)
        return {key: value for key, value in tree.items() if key not in (*_PLACES, "machine")}


def _picked(section: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(section, name) for name in names}


def _at_least(section: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{name} must be at least {least}, found {value!r}")


def _decodes(section: Prompts | Responses | Judging | Evaluation) -> None:
    _at_least(section, 0, "temperature")
    if not 0 < section.top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, found {section.top_p!r}")
