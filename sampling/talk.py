"""A dialog with a model: what is said goes in, the next answer comes out. Knows no terminal."""

from collections.abc import Callable
from dataclasses import dataclass, field

from llama import Llama, Tokenizer, encode_dialog
from sampling.batch import Decoding
from sampling.engine import stream
from sampling.spread import Request

Message = dict[str, str]
HALF = "\ufffd"  # what bytes that are no whole character are decoded to


@dataclass
class Talk:
    """The dialog so far, system message aside. An answer that was interrupted leaves no trace.

    The decoding's `stop_ids` must hold the tokenizer's eos.
    """

    model: Llama
    tokenizer: Tokenizer
    decoding: Decoding
    seed: int
    system: str | None = None
    said: list[Message] = field(default_factory=list)
    turn: int = 0

    def answer(
        self, text: str, say: Callable[[str], object] = lambda piece: None
    ) -> tuple[str, bool]:
        """The model's answer, and whether the model itself ended it. It remembers both turns.

        say: called with each piece of the answer as soon as it is written.
        Where the context is full, the oldest turns are forgotten. Raises ValueError if there is no
        room for this turn alone.
        """
        self.turn += 1
        ids = self._fit([*self.said, {"role": "user", "content": text}])
        request = Request(f"turn {self.turn}", ids)
        answer = heard = ""
        for sample in stream(self.model, request, self.decoding, seed=self.seed):
            answer = self.tokenizer.decode(sample.token_ids).strip()
            if not answer.endswith(HALF):  # the next token may complete the character
                say(answer.removeprefix(heard))
                heard = answer
        say(answer.removeprefix(heard))
        self.said.append({"role": "user", "content": text})
        self.said.append({"role": "assistant", "content": answer})
        return answer, sample.finished

    def _fit(self, messages: list[Message]) -> list[int]:
        """The ids of as many of the last turns as leave room for an answer."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        longest = self.model.config.max_seq_len
        while True:
            ids, _ = encode_dialog(self.tokenizer, [*system, *messages])
            if len(ids) + self.decoding.max_new_tokens <= longest or len(messages) == 1:
                break
            messages = messages[2:]  # a question and its answer
        if len(ids) >= longest:
            raise ValueError(f"that is {len(ids)} tokens, and the model reads {longest}: say less")
        return ids
