"""The seed data of the small world, in the same rows as real data: what people wrote, ranked and
judged.

`ift` is the best of three people's answers, by somebody who can tell, as the best-ranked answers of
Open Assistant are: good, not perfect. `eft` is what people wrote when they checked answers, kept
where the order of an instruction's scores agrees with the ranking, as in the paper. `eft_ranked`
are answers that people ranked without a word, for a model to practise judging on. Nothing here is
used twice, and no task of `held_out` or `ranked` occurs in any document or seed.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from .oracle import points
from .people import check_answer, write_answer
from .tasks import Task, draw_task, word_task

SEED = 1
IFT, EFT_SETS, EFT_RANKED, HELD_OUT, RANKED = 96, 14, 100, 400, 300
ANSWERS = 3  # to an instruction, of which ift keeps the best and a ranked set all

Row = dict[str, Any]


def write_seeds(directory: Path) -> None:
    """Writes the five files, and dev_held_out and dev_ranked, on which settings are chosen."""
    taken = set[str]()
    files = {
        "ift": _ift(Random(f"{SEED} ift"), taken),
        "eft": _eft(Random(f"{SEED} eft"), taken),
        "held_out": _prompts("test", Random(f"{SEED} held_out"), taken),
        "ranked": _ranked(RANKED, "test", Random(f"{SEED} ranked"), taken),
        "dev_held_out": _prompts("dev", Random(f"{SEED} dev_held_out"), taken),
        "dev_ranked": _ranked(RANKED, "dev", Random(f"{SEED} dev_ranked"), taken),
        "eft_ranked": _ranked(EFT_RANKED, "train", Random(f"{SEED} eft_ranked"), taken),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")


def score(task: Task, text: str) -> int:
    """The points of an answer, 0 to 5."""
    return sum(points(task, text).values())


def _tasks(count: int, split: str, rng: Random, taken: set[str]) -> list[Task]:
    """Tasks of a split that nothing else has taken."""
    tasks: list[Task] = []
    while len(tasks) < count:
        task = draw_task(rng, split)
        if task.key not in taken:
            taken.add(task.key)
            tasks.append(task)
    return tasks


def _ift(rng: Random, taken: set[str]) -> list[Row]:
    """Of the answers of a few people the best."""
    rows = []
    for i, task in enumerate(_tasks(IFT, "train", rng, taken)):
        answers = [write_answer(task, rng) for _ in range(ANSWERS)]
        best = max(answers, key=lambda text: score(task, text))
        rows.append({"id": f"ift-{i}", "prompt": word_task(task, rng), "response": best})
    return rows


def _prompts(split: str, rng: Random, taken: set[str]) -> list[Row]:
    tasks = _tasks(HELD_OUT, split, rng, taken)
    return [{"id": f"{split}-{i}", "prompt": word_task(task, rng)} for i, task in enumerate(tasks)]


def _ranked(count: int, split: str, rng: Random, taken: set[str]) -> list[Row]:
    """Instructions with answers of different worth, the order of the answers at random."""
    rows = []
    for i, task in enumerate(_tasks(count, split, rng, taken)):
        answers = _unequal_answers(task, rng)
        order = sorted(-score(task, text) for text in answers)
        responses = [{"text": text, "rank": order.index(-score(task, text))} for text in answers]
        rows.append(
            {"id": f"{split}-ranked-{i}", "prompt": word_task(task, rng), "responses": responses}
        )
    return rows


def _unequal_answers(task: Task, rng: Random) -> list[str]:
    """Answers that are one point apart, from somewhere on the scale: hard to tell apart."""
    answers: dict[int, str] = {}
    while True:
        text = write_answer(task, rng)
        answers.setdefault(score(task, text), text)
        starts = [low for low in answers if all(low + i in answers for i in range(ANSWERS))]
        if starts:
            texts = [answers[starts[0] + i] for i in range(ANSWERS)]
            rng.shuffle(texts)
            return texts


def _eft(rng: Random, taken: set[str]) -> list[Row]:
    """People's checks whose scores agree with the ranking; the commonest score no more often than
    the second.
    """
    rows: list[Row] = []
    for i, task in enumerate(_tasks(EFT_SETS, "train", rng, taken)):
        prompt, answers = word_task(task, rng), _unequal_answers(task, rng)
        while True:
            checks = [check_answer(task, text, rng) for text in answers]
            scores = [int(check[-1]) for check in checks]
            ranking = sorted(range(ANSWERS), key=lambda a: score(task, answers[a]))
            if all(scores[a] < scores[b] for a, b in pairwise(ranking)):
                break
        rows += [
            {
                "id": f"eft-{i}-{a}",
                "prompt": prompt,
                "response": answers[a],
                "judgement": checks[a],
                "score": scores[a],
            }
            for a in range(ANSWERS)
        ]
    counts = Counter(row["score"] for row in rows)
    (commonest, _), (_, limit) = counts.most_common(2)
    surplus = [row["id"] for row in rows if row["score"] == commonest][limit:]
    return [row for row in rows if row["id"] not in surplus]
