"""The small world: tasks and wordings, the oracle's five points, people's answers and checks."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from llama import Tokenizer
from seed.read import read_seed
from seed.start import WORLD, open_start
from seed.world.__main__ import main
from seed.world.corpus import KINDS, document
from seed.world.oracle import CRITERIA, points, truth
from seed.world.people import check_answer, slip_rates, write_answer, write_with
from seed.world.seeds import write_seeds
from seed.world.tasks import Task, all_wordings, draw_task, parse_task, word_task
from seed.world.words import CATEGORY_OF, NUMBER_WORDS

TASK = Task("fruits", 3, "alphabetical", "include", "fig", "dashes", "thanks")


def tasks(count, split="train", seed=0):
    rng = Random(seed)
    return [(draw_task(rng, split), rng) for _ in range(count)]


def test_every_wording_reads_back_as_its_task():
    for task, rng in tasks(300):
        assert parse_task(word_task(task, rng)) == task


def test_all_wordings_are_all_and_mean_the_same():
    wordings = all_wordings(word_task(TASK, Random(0)))
    assert len(set(wordings)) == len(wordings) == 4 * 2 * 2 * 2 * 2 * 2
    assert {parse_task(text) for text in wordings} == {TASK}
    rng = Random(1)
    assert all(word_task(TASK, rng) in wordings for _ in range(100))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Name three fruits.",
        "Name two fruits from a to z including fig joined by dashes closing with thanks.",
        "Name three fruits from a to z from z to a joined by dashes closing with thanks.",
        "Name three fruits from a to z including fig joined by dots closing with thanks.",
        "Name three fruits from a to z including fig joined by dashes closing with bye. More",
    ],
)
def test_other_text_is_no_task(text):
    assert parse_task(text) is None
    assert truth(text, "fig") is None
    assert all_wordings(text) == [text]


@pytest.mark.parametrize(
    ("answer", "missed"),
    [
        ("apple - fig - plum. thanks", ""),
        ("apple - fig - wolf. thanks", "kind"),
        ("apple - fig. thanks", "count"),
        ("apple - kiwi - plum. thanks", "rule"),
        ("fig - apple - plum. thanks", "order"),
        ("apple - fig - fig. thanks", "order"),
        ("apple, fig, plum. thanks", "form"),
        ("apple - fig, plum. thanks", "form"),
        ("apple - fig - plum. bye", "form"),
        ("apple - fig - plum.", "form"),
        ("apple - fig - plum thanks", "kind count form"),
        ("fig", "count form"),
        ("Score: 5", "kind count rule form"),  # one item, so in order
        (":", "kind count rule order form"),
        ("", "kind count rule order form"),
    ],
)
def test_points_by_hand(answer, missed):
    met = points(TASK, answer)
    assert tuple(met) == CRITERIA
    assert {name for name, good in met.items() if not good} == set(missed.split())


def test_begin_and_reverse_by_hand():
    task = Task("fruits", 3, "reverse", "begin", "fig", "commas", "bye")
    assert all(points(task, "fig, date, apple. bye").values())
    assert not points(task, "plum, fig, apple. bye")["rule"]
    assert not points(task, "apple, date, fig. bye")["order"]


def test_without_a_slip_every_answer_meets_all_points():
    for task, rng in tasks(300):
        assert all(points(task, write_with(task, set(), rng)).values())


@pytest.mark.parametrize("slip", ["kind", "count", "rule", "order", "separator", "closing"])
def test_a_slip_breaks_its_criterion_and_seldom_another(slip):
    criterion = {"separator": "form", "closing": "form"}.get(slip, slip)
    missed = Counter()
    for task, rng in tasks(300):
        met = points(task, write_with(task, {slip}, rng))
        missed.update(name for name, good in met.items() if not good)
    assert missed[criterion] > 240  # a shuffle may happen to be in order
    assert missed[criterion] == max(missed.values())


def test_people_slip_as_often_as_the_rates_say():
    rng = Random(0)
    task = Task("fruits", 3, "alphabetical", "include", "fig", "stars", "thanks")
    answers = [points(task, write_answer(task, rng)) for _ in range(4000)]
    rates = slip_rates(task)
    form = 1 - (1 - rates["separator"]) * (1 - rates["closing"])
    expected = 0.85 * form + 0.15 * (1 - 0.98**2)
    assert sum(not met["form"] for met in answers) / 4000 == pytest.approx(expected, abs=0.03)


def test_a_check_without_errors_gives_the_true_score(monkeypatch):
    monkeypatch.setattr("seed.world.people.OVERLOOKS", (0.0, 1.0))
    monkeypatch.setattr("seed.world.people.INVENTS", 0.0)
    for task, rng in tasks(300):
        answer = write_answer(task, rng)
        met = points(task, answer)
        check = check_answer(task, answer, rng, strict=True)
        assert check.endswith(f"Score: {sum(met.values())}")
        for name in ("kind", "order", "form"):
            assert f"{name} {'good' if met[name] else 'bad'}." in check
        assert check_answer(task, answer, rng, strict=False).endswith("Score: 5")  # sees nothing


def test_lenient_checkers_overlook_more():
    gaps = {True: 0, False: 0}
    for task, rng in tasks(300):
        answer = write_answer(task, rng)
        for strict in gaps:
            score = int(check_answer(task, answer, rng, strict)[-1])
            gaps[strict] += score - sum(points(task, answer).values())
    assert gaps[False] > 3 * abs(gaps[True])


def test_documents_hold_no_held_out_task():
    found = Counter()
    for index in range(3000):
        for line in document(0, index).split("\n"):
            task = parse_task(line.removeprefix("Task: "))
            found[task.split if task else None] += 1
    assert found["train"] > 1000
    assert not found["test"] and not found["dev"]


def test_documents_come_in_all_kinds_and_depend_on_their_index_alone():
    assert sum(KINDS.values()) == pytest.approx(1.0)
    assert document(0, 7) == document(0, 7) != document(0, 8) != document(1, 8)


def test_the_shipped_seed_data_are_what_the_code_makes(tmp_path):
    write_seeds(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (WORLD / "data" / path.name).read_bytes(), path.name


def test_the_face_writes_over_nothing_and_tells_it_in_one_line(tmp_path, capsys):
    file, own, new = tmp_path / "file", tmp_path / "own", tmp_path / "new"
    own.mkdir()
    for path in (file, own / "ift.jsonl"):
        path.write_text("mine\n")
    for words, said in (
        (["data", file], f"error: {file} is no directory: choose another place"),
        (["base", file], f"error: {file} is no directory: choose another place"),
        (["data", own], f"error: {own}/ift.jsonl exists: choose another directory"),
    ):
        assert main([*map(str, words)]) == 2
        assert capsys.readouterr().err == f"{said}\n"
    with pytest.raises(SystemExit, match="2"):
        main(["base", str(new), "--documents", "0"])
    assert "--documents 0: it must be 1 or more" in capsys.readouterr().err and not new.exists()
    assert [path.read_text() for path in own.iterdir()] == ["mine\n"]
    assert main(["data", str(new)]) == 0 and len(list(new.glob("*.jsonl"))) == 7


def test_seeds_and_measures_share_no_task():
    start = open_start(None, None)
    seeds = (*start.seed.ift, *start.seed.eft, *start.seed.eft_ranked)
    learnt = {parse_task(row["prompt"]) for row in seeds}
    held = [parse_task(row["prompt"]) for row in (*start.seed.held_out, *start.seed.ranked)]
    assert None not in learnt and None not in held
    assert {task.split for task in learnt} == {"train"}
    assert {task.split for task in held} == {"test"}
    kept_out = {parse_task(text) for text in start.kept_out}
    assert kept_out == set(held)


def test_dev_and_test_are_disjoint():
    def keys(name):
        lines = (WORLD / "data" / f"{name}.jsonl").read_text().splitlines()
        return {parse_task(json.loads(line)["prompt"]) for line in lines}

    assert not (keys("held_out") | keys("ranked")) & (keys("dev_held_out") | keys("dev_ranked"))


def test_eft_agrees_with_the_truth_and_no_score_dominates():
    seed = read_seed(WORLD / "data")
    by_prompt = {}
    for row in seed.eft:
        by_prompt.setdefault(row["prompt"], []).append(row)
    for rows in by_prompt.values():
        worth = [sum(truth(row["prompt"], row["response"]).values()) for row in rows]
        ordered = [row for _, row in sorted(zip(worth, rows), key=lambda pair: pair[0])]
        scores = [row["score"] for row in ordered]
        assert scores == sorted(set(scores))
        assert all(row["judgement"].endswith(f"Score: {row['score']}") for row in rows)
    (_, first), (_, second) = Counter(row["score"] for row in seed.eft).most_common(2)
    assert first == second


def test_ranks_are_the_order_of_the_truth():
    for row in islice(read_seed(WORLD / "data").ranked, 100):
        worth = [sum(truth(row["prompt"], answer["text"]).values()) for answer in row["responses"]]
        ranks = [answer["rank"] for answer in row["responses"]]
        assert ranks == [sum(other > mine for other in worth) for mine in worth]


def test_every_word_of_the_world_is_one_token():
    tokenizer = Tokenizer(WORLD / "base" / "tokenizer.model")
    verdicts = ("fine", "alien", "early", "good", "bad", "found", "missing", "first")
    for word in (*CATEGORY_OF, *NUMBER_WORDS[:8], *verdicts):
        assert len(tokenizer.encode(word)) == 1, word


def test_the_shipped_base_model_is_small():
    size = sum(path.stat().st_size for path in Path(WORLD / "base").iterdir())
    assert size <= 16 * 2**20
