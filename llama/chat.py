"""Llama 2's chat format: a dialog becomes token ids and, born with them, the mask of the answers.

```
<s>[INST] <<SYS>>            is_response: no
be brief
<</SYS>>

hello [/INST] hi there </s>  "hi there", the space and </s>: yes
<s>[INST] bye [/INST]        no; the model goes on from here
```
`<s>` and `</s>` are ids put in by this code; everything else is text, and a text that spells them
gets ordinary pieces. (`[INST]` is ordinary text in Llama 2 itself, so a prompt can imitate it; the
mask does not follow such imitations.) Knows no tensor and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama.tokenizer import Tokenizer

Message = Mapping[str, str]  # role: system | user | assistant; content

# The same format for the tools that render text first: a Jinja template for tokenizer_config.json.
# One difference is theirs, not ours: a tokenizer that is given rendered text takes a `</s>` inside
# a message for the real one.
CHAT_TEMPLATE = (
    "{% set said = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}"
    "{% set said.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (said.system + message['content']) | trim + ' [/INST]' }}"
    "{% set said.system = '' %}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% else %}"
    "{{ raise_exception('roles must be: an optional system, then user and assistant in turn') }}"
    "{% endif %}"
    "{% endfor %}"
)


def encode_dialog(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """(ids, is_response) of a dialog: perhaps a system message, then user and assistant in turn.

    is_response is true on what the assistant wrote and on the `</s>` that closes it. A dialog that
    ends with the user is a prompt: no `</s>`, nothing true. A turn is encoded on its own, so what
    is added later changes no id before it. Raises ValueError for roles out of turn.
    """
    ids: list[int] = []
    is_response: list[bool] = []
    system, turns = _split_system(messages)
    for place, message in enumerate(turns):
        expected = ("user", "assistant")[place % 2]
        if message["role"] != expected:
            raise ValueError(f"expected a message of role {expected!r}, found {message['role']!r}")
        if expected == "user":
            asked = (system + message["content"]).strip()
            turn = [tokenizer.bos_id, *tokenizer.encode(f"[INST] {asked} [/INST]")]
            system = ""
        else:
            turn = [*tokenizer.encode(f"{message['content'].strip()} "), tokenizer.eos_id]
        ids += turn
        is_response += [expected == "assistant"] * len(turn)
    return ids, is_response


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """What the system message puts before the first user's text, and the messages after it."""
    if messages and messages[0]["role"] == "system":
        system, messages = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n", messages[1:]
    else:
        system = ""
    if not messages:
        raise ValueError("a dialog needs at least one message of role 'user'")
    return system, messages


def encode_prompt(tokenizer: Tokenizer, prompt: str, system: str | None = None) -> list[int]:
    """Ids up to where the model answers."""
    return encode_dialog(tokenizer, _opening(prompt, system))[0]


def encode_example(
    tokenizer: Tokenizer, prompt: str, response: str, system: str | None = None
) -> tuple[list[int], list[bool]]:
    """(ids, is_response) of a prompt and its answer; the ids begin with `encode_prompt(prompt)`."""
    answer = {"role": "assistant", "content": response}
    return encode_dialog(tokenizer, [*_opening(prompt, system), answer])


def _opening(prompt: str, system: str | None) -> list[Message]:
    user = {"role": "user", "content": prompt}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def encode_raw(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text for a base model to go on with: `<s>` and the text, no format."""
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def encode_document(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[bool]]:
    """(ids, is_response) of `<s>`, a text to pretrain on, `</s>`; all but `<s>` is response."""
    ids = [*encode_raw(tokenizer, text), tokenizer.eos_id]
    return ids, [False] + [True] * (len(ids) - 1)
