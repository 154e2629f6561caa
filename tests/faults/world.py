"""The smallest world: three iterations of the real loop, every stage of it, in about a second.

A Llama of 28,000 weights that has learnt to go on with a list and to say `Score: N`, any N, and
nothing else of use. What it leaves on the disk is all that a run leaves, and candidates and
judgements are made in several units.
"""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from tiny_llama import tiny_model, tiny_tokenizer

import llama
from dpo import Row, TrainSettings, train_sft
from judge.rubric import fill
from llama.chat import encode_example, encode_raw
from llama.parallel import start
from sampling.self_instruct import few_shot_text

RUBRIC = "Judge {prompt} {response}"
WORDS = ("owl", "fig", "red", "sea", "oak", "tin", "rye", "elm")
SETTINGS = """\
preset = "smoke"
iterations = 3

[sft]
learning_rate = 1e-3
epochs = 1.0
batch_size = 8
save_every = 2

[prompts]
count = 3
round_size = 6
max_new_tokens = 12
n_seed = 2
n_made = 1
min_words = 1

[responses]
temperature = 1.0
max_new_tokens = 10

[judging]
k = 2
temperature = 0.8
max_new_tokens = 12

[dpo]
epochs = 2.0
batch_size = 2
save_every = 1
max_steps = 3

[evaluation]
instructions = 2
ranked = 1

[machine]
unit = 2
"""


def make_world(home: Path) -> Path:
    """Writes the world into `home`; returns it."""
    answers = [{"text": "yes", "rank": 0}, {"text": "no", "rank": 1}]
    asked = {name: f"Is it {word}?" for name, word in zip("ABC", WORDS)}
    rows = {
        "ift": [{"id": w, "prompt": f"Say {w}.", "response": f"{w} is it."} for w in WORDS],
        "eft": [_judged(word, score) for word in WORDS for score in (1, 3, 5)],
        "held_out": [{"id": w, "prompt": f"Write {w}."} for w in WORDS[:2]],
        "ranked": [{"id": "A", "prompt": asked["A"], "responses": answers}],
        "eft_ranked": [{"id": n, "prompt": asked[n], "responses": answers} for n in "BC"],
    }
    _save_base(home / "base")
    (home / "seed").mkdir()
    for name, lines in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (home / "seed" / f"{name}.jsonl").write_text(text)
    (home / "rubric.txt").write_text(RUBRIC)
    (home / "settings.toml").write_text(SETTINGS)
    return home


def _judged(word: str, score: int) -> dict[str, Any]:
    said = {"response": word, "judgement": f"Score: {score}", "score": score}
    return {"id": f"{word}{score}", "prompt": f"Tell {word}.", **said}


def _save_base(path: Path) -> None:
    """A model that gives random text, or a list of it, a word or two, and judges random text by a
    random score.
    """
    model, tokenizer, draw = tiny_model(), tiny_tokenizer(), Random(0)

    def babble() -> str:
        ids = [draw.randrange(3, 400) for _ in range(draw.randrange(1, 7))]
        return tokenizer.decode(ids)

    texts = []
    for _ in range(400):
        texts.append((babble(), " ".join(draw.choices(WORDS, k=draw.randrange(1, 3)))))
        asked = fill(RUBRIC, prompt=babble(), response=babble())
        texts.append((asked, f"Score: {draw.choice((1, 3, 5))}"))
    rows = [Row(*encode_example(tokenizer, *text)) for text in texts]
    for _ in range(200):
        shown = few_shot_text([{"prompt": babble()} for _ in range(3)])
        ids = encode_raw(tokenizer, f"{shown} {' '.join(draw.sample(WORDS, 2))}\n")
        given = len(encode_raw(tokenizer, shown))
        rows.append(Row(ids, [False] * given + [True] * (len(ids) - given)))
    how = TrainSettings(learning_rate=2e-2, epochs=5, batch_size=16, dropout=0.0)
    with redirect_stderr(StringIO()):  # the progress bar
        train_sft(model, rows, how, seed=0, group=start())
    llama.save(model, tokenizer, path)


def flags(home: Path, run: Path, *more: str) -> list[str]:
    """The command line of a run in that world."""
    rubric = f"judging.rubric={json.dumps(str(home / 'rubric.txt'))}"
    places = {"--config": home / "settings.toml", "--model": home / "base"}
    places |= {"--seed-data": home / "seed", "--run": run}
    return [*(str(x) for pair in places.items() for x in pair), "--set", rubric, *more]
