"""Loads, trains and lets speak the models of a run, one in memory at a time. Knows no order of
steps.

Here text becomes tokens for training; for sampling it does in `sampling/complete.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dpo import Pair, Row, TrainSettings, pair_logps, row_logps, train_dpo, train_sft
from dpo.lines import pair_line
from dpo.reference import Reference
from dpo.telemetry import NOTHING, Telemetry
from llama import Llama, Tokenizer, encode_prompt, load_sharded, save
from llama.lora import Lora
from llama.parallel import Group
from llama.team import Team, join
from loop.examples import Example, fitting, fitting_pairs
from loop.replica import load_replica, replica_of
from loop.run import Run
from loop.settings import Settings
from sampling import Completer, Completion

BASELINE = "M1-baseline"  # SFT on seed answers alone; it judges where the seed has no judgements
Metrics = dict[str, float]


class Models:
    """What a run does with models, on all ranks alike."""

    def __init__(
        self, run: Run, settings: Settings, group: Group, telemetry: Telemetry = NOTHING
    ) -> None:
        self.run, self.settings, self.group, self.telemetry = run, settings, group, telemetry
        self.dtype = getattr(torch, settings.dtype)
        self._speaking: tuple[Path, Completer] | None = None
        self._trained: tuple[Path, Llama, Tokenizer] | None = None  # and nothing has been loaded
        join(group, settings.machine.sample_tp or 1)  # now, for it may be refused

    def complete(self, path: Path) -> "Speaker":
        """What `sampling` and `judge` see of a model; it is loaded when it is first asked."""
        return Speaker(self, path)

    def sft(self, name: str, start: Path, examples: Sequence[Example], how: TrainSettings) -> Path:
        """The stage `name`: a copy of `start`, trained on examples."""

        def make(out: Path) -> Metrics:
            model, tokenizer = self._trainable(start, how.lora)
            rows = self._fitting(name, examples, model, tokenizer)
            self._say_steps(name, how, [row.ids for row in rows])
            metrics = self._train(train_sft, model, tokenizer, rows, how, out, name)
            return metrics | {"too_long": len(examples) - len(rows)}

        return self.run.directory(name, make, f"{name}: SFT")

    def dpo(
        self,
        name: str,
        start: Path,
        pairs: Sequence[Mapping[str, Any]],
        replay: Sequence[Example],
        how: TrainSettings,
        keep_every: int | None = None,
        reference: Path | None = None,
    ) -> Path:
        """The stage `name`: a copy of `start`, trained on preference pairs with `start`, or another
        model, as the reference. Every so many steps a checkpoint is kept in it, `step-N`.

        Raises ValueError if there are too few pairs to learn from.
        """
        self._check_count(name, start, pairs)

        def make(out: Path) -> Metrics:
            known = None if reference is None else self.pair_logps(reference, pairs)
            model, tokenizer = self._trainable(start, how.lora)
            longest = model.config.max_seq_len
            rows = fitting_pairs(pairs, tokenizer, longest)
            self._say_left_out(name, "pairs", len(pairs) - len(rows), longest)
            self._check_count(name, start, rows)
            wanted = replay if how.replay_weight else ()
            again = self._fitting(name, wanted, model, tokenizer)
            lines = [pair_line(pair, index, longest) for index, pair in enumerate(rows)]
            self._say_steps(name, how, lines, [row.ids for row in again])
            keep = _keeper(model, tokenizer, out, keep_every) if keep_every else None
            train = partial(train_dpo, replay=again, after_step=keep, reference=known)
            metrics = self._train(train, model, tokenizer, rows, how, out, name)
            too_long = len(pairs) - len(rows) + len(wanted) - len(again)
            return metrics | {"too_long": too_long}

        return self.run.directory(name, make, f"{name}: DPO")

    def pair_logps(self, path: Path, pairs: Sequence[Mapping[str, Any]]) -> Reference:
        """Summed log-probabilities of the responses, (chosen [P], rejected [P]), by that model; of
        the pairs that it can read whole."""
        model, tokenizer = self._trainable(path)
        rows = fitting_pairs(pairs, tokenizer, model.config.max_seq_len)
        return pair_logps(model, rows, self.settings.dpo.micro_tokens, self.group)

    def speak_freely(
        self,
        path: Path,
        parts: Sequence[Sequence[Mapping[str, Any]]],
        max_new_tokens: int,
        seed: int,
    ) -> Iterator[list[dict[str, Any]]]:
        """One free sample to each prompt by the model of `path`: temperature 1, no token left out.

        Yields each part's rows `{id, prompt, token_ids, finished}`.
        """
        prompts = list(chain.from_iterable(parts))
        free: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "n": 1, "seed": seed}
        said = self.complete(path)(
            [row["prompt"] for row in prompts],
            ids=[row["id"] for row in prompts],
            max_new_tokens=max_new_tokens,
            parts=[len(part) for part in parts],
            description="drifting",
            **free,
        )
        rest = iter(said)
        for part in parts:
            yield [
                {
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "token_ids": one.token_ids,
                    "finished": one.finished,
                }
                for row, (one,) in zip(part, rest)
            ]

    def drift(
        self, path: Path, before: Path, said: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """How far the model of `path` is from that of `before`, by what it said freely.

        said: rows of `speak_freely`. Returns rows `{id, token_count, logp, logp_before}`, summed
        log-probabilities in nats by both. The mean of their difference estimates KL(path ‖ before).
        A prompt that fills the context left no room for a token, and has no row.
        """
        said = [row for row in said if row["token_ids"] or row["finished"]]
        rows: list[Row] = []
        size, logps = self.settings.dpo.micro_tokens, []
        for which in (path, before) if said else ():
            model, tokenizer = self._trainable(which)
            rows = rows or [_said(tokenizer, row) for row in said]
            logps.append(row_logps(model, rows, size, self.group))
        return [
            {
                "id": one["id"],
                "token_count": sum(row.is_response),
                "logp": ours,
                "logp_before": theirs,
            }
            for one, row, ours, theirs in zip(said, rows, *logps)
        ]

    def speaking(self, path: Path) -> Completer:
        """The model of `path` in its sampling form; whichever was in memory before leaves it."""
        if self._speaking is None or self._speaking[0] != path:
            self._speaking = None  # first free, then load
            model, tokenizer, team = self._replica(path)
            slots = self.settings.machine.slots
            self._speaking = path, Completer(model, tokenizer, group=team, slots=slots)
        return self._speaking[1]

    def _replica(self, path: Path) -> tuple[Llama, Tokenizer, Team]:
        how = self.group, self.dtype, self.settings.machine.sample_tp
        trained, self._trained = self._trained, None
        if trained and trained[0] == path and (found := replica_of(trained[1], *how)):
            model, team = found
            return model, trained[2], team
        del trained  # first free, then load
        return load_replica(path, *how)

    def _trainable(self, path: Path, lora: Lora | None = None) -> tuple[Llama, Tokenizer]:
        self._speaking = self._trained = None
        return load_sharded(path, self.group, self.dtype, lora=lora)

    def _fitting(
        self, name: str, examples: Sequence[Example], model: Llama, tokenizer: Tokenizer
    ) -> list[Row]:
        """`fitting` for this model; a line says how many are left out."""
        longest = model.config.max_seq_len
        rows = fitting(examples, tokenizer, longest)
        self._say_left_out(name, "examples", len(examples) - len(rows), longest)
        return rows

    def _check_count(self, name: str, start: Path, pairs: Sized) -> None:
        least = self.settings.pairs.minimum
        if len(pairs) < least:
            raise ValueError(
                f"{self.run.root}: {len(pairs)} preference pairs for {name}, at least {least} are "
                f"needed; the counts in manifest.json and the judgements in {start} say why"
            )

    def _say_left_out(self, name: str, what: str, count: int, longest: int) -> None:
        if count:
            self.run.say(f"{name}: {count} {what} of more than {longest} tokens are left out")

    def _say_steps(self, name: str, how: TrainSettings, *data: Sequence[Sized]) -> None:
        """How many steps there will be, of how many tokens on all ranks; each kind of data has its
        batch in a step.
        """
        steps = how.steps(-(-len(data[0]) // how.batch_size))
        tokens = sum(how.batch_size * sum(map(len, lines)) / len(lines) for lines in data if lines)
        self.run.say(f"{name}: {steps} steps of about {tokens:,.0f} tokens")

    def _train(
        self,
        train: Callable[..., Metrics],
        model: Llama,
        tokenizer: Tokenizer,
        data: Sequence[Row] | Sequence[Pair],
        how: TrainSettings,
        out: Path,
        name: str,
    ) -> Metrics:
        metrics = train(
            model,
            data,
            how,
            seed=self.settings.seed,
            group=self.group,
            directory=out,
            description=name,
            telemetry=self.telemetry,
        )
        save(model, tokenizer, out)
        self._trained = self.run.root / name, model, tokenizer
        return metrics


class Speaker:
    """Completes prompts with one model, loading it only when asked: a finished stage costs no
    loading.
    """

    def __init__(self, models: Models, path: Path) -> None:
        self.models, self.path = models, path

    def __call__(self, prompts: list[str], **how: Any) -> Iterable[list[Completion]]:
        return self.models.speaking(self.path)(prompts, **how)


def _keeper(
    model: Llama, tokenizer: Tokenizer, out: Path, every: int
) -> Callable[[int, int], None]:
    def keep(step: int, steps: int) -> None:
        if step % every == 0 and step < steps:
            save(model, tokenizer, out / f"step-{step}")

    return keep


def _said(tokenizer: Tokenizer, row: Mapping[str, Any]) -> Row:
    """The very tokens that were sampled: encoded anew, their text might have others."""
    asked = encode_prompt(tokenizer, row["prompt"])
    ids = [*row["token_ids"], *([tokenizer.eos_id] if row["finished"] else [])]
    return Row([*asked, *ids], [False] * len(asked) + [True] * len(ids))
