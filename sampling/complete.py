"""Texts to texts: what the other packages see of a model. Knows the format of a prompt, and ranks.

It turns prompts into requests, gives each rank its part, and gathers what they made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from llama.chat import encode_prompt, encode_raw
from llama.model import Llama
from llama.parallel import Group
from llama.team import Team
from llama.tokenizer import Tokenizer
from sampling.bar import progress_bar
from sampling.batch import Decoding, Sample
from sampling.engine import bytes_at_hand, generate_parts
from sampling.spread import Made, Parts, Request, over_ranks

T = TypeVar("T")
# a choice by its number; how far the text goes, up to and with it; how probable each was there
Place = tuple[int, int, list[float]]


@dataclass(frozen=True)
class Completion:
    """What the model wrote; `finished` says whether it came to an end of its own.

    places: where choices were given, each place in which the last token of one of them stands,
    whatever stands before it.
    """

    text: str
    token_ids: list[int]
    finished: bool
    places: Sequence[Place] = ()


class Completer:
    """A model as a function of prompts, on one rank or on all ranks of a group together, whether
    each has a replica or a team of them has.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        group: Group | Team | None = None,
        slots: int | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.group, self.slots = model, tokenizer, group, slots
        self.progress = progress and (group is None or group.is_main)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        ids: Sequence[str],
        n: int,
        seed: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        raw: bool = False,
        stop_at_newline: bool = False,
        choices: Sequence[str] = (),
        parts: Sequence[int] = (),
        description: str,
    ) -> Iterable[list[Completion]]:
        """n completions of each prompt, in order; with a group, all ranks call it and get all.

        ids: names of the prompts, each its own. A completion depends on (seed, id, its number among
          the n) and on nothing beside it, not on the number of ranks either.
        raw: the prompt is continued as it is; otherwise it is a user's turn, under the chat format.
        stop_at_newline: the first line is the completion. description: for the progress bar.
        choices: texts that differ in their last token alone, such as "Score: 1" and "Score: 2"; a
          completion then tells how probable each was wherever that token of one stands. Raises
          ValueError for others, for ids that are not unique, and as `generate` does.
        parts: how many prompts each part has; a part's completions then come as soon as they are
          there, with those of later parts in progress.
        """
        if len(set(ids)) < len(prompts):
            raise ValueError(f"{len(prompts)} prompts have {len(set(ids))} different ids")
        encode = encode_raw if raw else encode_prompt
        requests = [Request(id, encode(self.tokenizer, text), n) for id, text in zip(ids, prompts)]
        stop_ids = {self.tokenizer.eos_id} | (
            {self.tokenizer.newline_id} if stop_at_newline else set()
        )
        watch = last_tokens(self.tokenizer, choices)
        decoding = Decoding(temperature, top_p, max_new_tokens, frozenset(stop_ids), watch=watch)
        made = parts_on_ranks(
            self.model,
            _cut(requests, parts or [len(requests)]),
            decoding,
            seed=seed,
            group=self.group,
            slots=self.slots,
            description=description,
            shown=self.progress,
        )
        each = (
            [self._completion(sample, watch) for sample in several]
            for part in made
            for several in part
        )
        return each if parts else list(each)

    def _completion(self, sample: Sample, watch: Sequence[int]) -> Completion:
        # the chat format puts spaces around an answer; they are not the answer's
        ids, decode = sample.token_ids, self.tokenizer.decode
        places = tuple(
            (watch.index(token), len(decode(ids[:count]).lstrip()), chances)
            for count, (token, chances) in enumerate(zip(ids, sample.watched or ()), start=1)
            if token in watch
        )
        return Completion(decode(ids).strip(), ids, sample.finished, places)


def _cut(items: Sequence[T], sizes: Sequence[int]) -> list[list[T]]:
    rest = iter(items)
    return [list(islice(rest, size)) for size in sizes]


def last_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, ...]:
    """The last token of each of these texts. Raises ValueError if it is not all they differ in."""
    ids = [tokenizer.encode(text) for text in texts]
    if len({tuple(each[:-1]) for each in ids}) > 1:
        raise ValueError(
            f"the tokenizer writes the ends of {texts[0]!r} to {texts[-1]!r} with more than one "
            "token each, so their probabilities cannot be told; judging.expected=false"
        )
    return tuple(each[-1] for each in ids)


def sample_on_ranks(
    model: Llama, requests: Sequence[Request], decoding: Decoding, **how: Any
) -> Made:
    """`parts_on_ranks` of one part."""
    [made] = parts_on_ranks(model, [requests], decoding, **how)
    return made


def parts_on_ranks(
    model: Llama,
    parts: Parts,
    decoding: Decoding,
    *,
    seed: int,
    group: Group | Team | None,
    slots: int | None = None,
    description: str,
    shown: bool,
) -> Iterator[Made]:
    """`generate_parts`, with a progress bar, by all ranks of a group: each makes a share of every
    part, all get all. The ranks of a team make the same share together, and in step.

    Raises PeerLost if one of a team's ranks is lost.
    """
    how: dict[str, Any] = {"seed": seed, "slots": slots}
    touch: AbstractContextManager[None] = nullcontext()
    if group is not None and group.world_size > 1:
        how["processes"] = 1  # several ranks share the machine already
    if isinstance(group, Team) and group.size > 1:
        how |= {"together": True, "kv_bytes": _room_of_all(group)}
        touch = group.group.phase(description)

    def make(mine: Parts) -> Iterator[Made]:
        samples = sum(one.n for part in mine for one in part)
        with progress_bar(samples, description, shown=shown) as tell:
            yield from generate_parts(model, mine, decoding, progress=tell, **how)

    with touch:
        if group is None:
            yield from make(parts)
        else:
            yield from over_ranks(make, parts, decoding.max_new_tokens, group)


def _room_of_all(team: Team) -> int | None:
    """What every rank has for its cache: a team admits the same samples on each of its ranks."""
    room = bytes_at_hand(team.group.device)
    return None if room is None else team.least(room)
