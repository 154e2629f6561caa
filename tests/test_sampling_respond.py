"""Candidates: n rows a prompt, whole, in order."""

from dataclasses import dataclass

from sampling.respond import respond


@dataclass(frozen=True)
class Answer:
    text: str
    token_ids: tuple[int, ...]
    finished: bool


def fake(prompts, *, ids, n, seed, **asked) -> list[list[Answer]]:
    assert asked == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_new_tokens": 9,
        "description": "answering",
    }
    return [
        [Answer(f" {prompt}-{name}-{seed}-{k} ", (1,) * (k + 2), k != 1) for k in range(n)]
        for prompt, name in zip(prompts, ids)
    ]


def test_rows() -> None:
    prompts = [{"id": "p", "prompt": "Sing"}, {"id": "q", "prompt": "Go"}]
    how = {"seed": 3, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 9}
    rows = respond(fake, prompts, n=2, **how)
    assert rows[1] == {
        "id": "p.1",
        "prompt_id": "p",
        "k": 1,
        "text": " Sing-p-3-1 ",  # as it was written, spaces and all
        "token_count": 3,
        "finished": False,
    }
    assert [row["id"] for row in rows] == ["p.0", "p.1", "q.0", "q.1"]
    assert respond(fake, [], n=2, **how) == []
