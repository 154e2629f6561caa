"""Lets a model write new prompts after the manner of given ones (Self-Instruct, Wang et al. 2022).

Knows no model: it sees a callable. Work is cut into rounds of a fixed number of requests, and what
a request shows is drawn by (seed, round, index) alone: the outcome does not depend on how the
requests were spread over ranks or batched, and finished rounds are all that a next one needs.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from sampling.respond import Complete, Row
from sampling.sieve import REASONS, Sieve

Counts = dict[str, int]
Keep = Callable[[int, Callable[[], list[Row]]], list[Row]]
CHAT = """Here are {count} tasks that people gave to an assistant.

{tasks}

Write one more task of this kind, a new one that a person might well give. Reply with one line
that begins with "Task:" and holds the task, and with nothing else."""
OUTCOMES = ("unfinished", *REASONS, "surplus", "kept")


def write_prompts(
    complete: Complete,
    seed_prompts: Sequence[Row],
    count: int,
    *,
    sieve: Sieve,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    n_seed: int = 6,
    n_made: int = 2,
    round_size: int = 256,
    max_rounds: int = 100,
    chat: bool = False,
    keep: Keep = lambda number, make: make(),
) -> tuple[list[Row], Counts]:
    """Writes `count` prompts that resemble the seed prompts `{id, prompt}` and repeat none of them.

    Rounds of `write_round`, until enough are kept or `max_rounds` are over (then fewer are kept).
    The sieve is a fresh one; the seed prompts count as kept. `keep(number, make)` gives what
    was written in a round: what `make()` gives, or gave before.

    Returns rows `{id, prompt, demonstrations: [ids]}` and counts: `written` = unfinished + each of
    `sieve.REASONS` + surplus (came after the last one needed) + `kept`; and `rounds`. What is kept
    for a smaller `count` is the beginning of what is kept for a larger one.
    Raises ValueError if too few seed prompts are fit to be shown.
    """
    for row in seed_prompts:
        sieve.keep(one_line(row["prompt"]))
    counts = Counter(dict.fromkeys((*OUTCOMES, "written", "rounds"), 0))
    kept: list[Row] = []
    while len(kept) < count and counts["rounds"] < max_rounds:
        made, outcomes = write_round(
            complete,
            seed_prompts,
            kept,
            count - len(kept),
            number=counts["rounds"],
            sieve=sieve,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            n_seed=n_seed,
            n_made=n_made,
            round_size=round_size,
            chat=chat,
            keep=keep,
        )
        kept += made
        counts.update(outcomes, rounds=1)
    return kept, dict(counts)


def write_round(
    complete: Complete,
    seed_prompts: Sequence[Row],
    made: Sequence[Row],
    wanted: int,
    *,
    number: int,
    sieve: Sieve,
    seed: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    n_seed: int = 6,
    n_made: int = 2,
    round_size: int = 256,
    chat: bool = False,
    keep: Keep = lambda number, make: make(),
) -> tuple[list[Row], Counts]:
    """Round `number`: the first `wanted` good ones among the lines written to round_size requests.

    Each request shows n_seed seed prompts and n_made of those `made` in earlier rounds (seed ones
    while these are too few), shuffled. A base model adds a line to that list; with `chat` the model
    is asked for one, under the chat template. The sieve knows the seed prompts and those made
    already; it learns the new ones. Rows, counts and errors as in `write_prompts`.
    """
    shown = fit_to_show(seed_prompts, sieve, n_seed + n_made)
    draws = [random.Random(f"{seed}/{number}/{index}") for index in range(round_size)]
    shows = [demonstrations(shown, made, n_seed, n_made, draw) for draw in draws]
    ids = [f"r{number}.{index}" for index in range(round_size)]

    def write() -> list[Row]:
        lines = complete(
            [(chat_text if chat else few_shot_text)(show) for show in shows],
            ids=ids,
            n=1,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            raw=not chat,
            stop_at_newline=not chat,
            description="writing prompts",
        )
        return [{"text": line.text, "finished": line.finished} for (line,) in lines]

    counts = Counter(written=round_size)
    rows: list[Row] = []
    for identity, show, line in zip(ids, shows, keep(number, write)):
        text = task_in_reply(line["text"]) if chat else one_line(line["text"])
        outcome = "surplus" if len(rows) == wanted else _outcome(line, text, sieve)
        counts[outcome] += 1
        if outcome == "kept":
            sieve.keep(text)
            shown_ids = [row["id"] for row in show]
            rows.append({"id": identity, "prompt": text, "demonstrations": shown_ids})
    return rows, dict(counts)


def _outcome(line: Row, text: str, sieve: Sieve) -> str:
    if not line["finished"]:
        return "unfinished"
    return sieve.unfit(text) or sieve.known(text) or "kept"


def demonstrations(
    seeds: Sequence[Row], made: Sequence[Row], n_seed: int, n_made: int, draw: random.Random
) -> list[Row]:
    """n_seed seed prompts and n_made made ones, shuffled; only seed ones while too few are made."""
    from_made = draw.sample(made, n_made) if len(made) >= n_made else []
    chosen = draw.sample(seeds, n_seed + n_made - len(from_made)) + from_made
    draw.shuffle(chosen)
    return chosen


def few_shot_text(rows: Sequence[Row]) -> str:
    """A list of tasks, one a line, that breaks off where the next one begins.

    No space at its end: SentencePiece joins a space to the word that follows it.
    """
    return "".join(f"Task: {one_line(row['prompt'])}\n" for row in rows) + "Task:"


def chat_text(rows: Sequence[Row]) -> str:
    """The same list, and the request for one more, as a user would put it."""
    tasks = "\n".join(f"Task: {one_line(row['prompt'])}" for row in rows)
    return CHAT.format(count=len(rows), tasks=tasks)


def task_in_reply(reply: str) -> str:
    """The task in a chat model's reply: what stands behind its last "Task:", on that line; empty,
    which no sieve lets through, where there is none.
    """
    tasks = [line for line in reply.splitlines() if line.strip().startswith("Task:")]
    return one_line(tasks[-1].partition("Task:")[2]) if tasks else ""


def one_line(text: str) -> str:
    """The text with every run of spaces and line breaks made a single space."""
    return " ".join(text.split())


def fit_to_show(seed_prompts: Sequence[Row], sieve: Sieve, needed: int) -> list[Row]:
    """The seed prompts that may be shown. Raises ValueError if they are fewer than `needed`."""
    fit = [row for row in seed_prompts if sieve.unfit(row["prompt"]) is None]
    if len(fit) < needed:
        raise ValueError(
            f"{len(fit)} of {len(seed_prompts)} seed prompts pass the filters for length and "
            f"keywords, but {needed} are shown at a time; show fewer, give more "
            "or loosen the filters"
        )
    return fit
