"""How much memory a rank will need, phase by phase, before anything heavy is done.

Counts what the code here allocates: the tensors that the autograd graph keeps, weight by weight and
token by token. What a library takes for itself (buffers, fragments) is not in it. Knows no file, no
rank and no trainer: what they would do is told by numbers.
"""

# C width, F width of the SwiGLU, H query heads, K width of all keys of a token, V vocabulary
# P weights, w bytes of a number

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama.config import LlamaConfig
from llama.lora import TARGETS, Lora
from llama.split import Split, parameter_count

MASTER = 4  # bytes of a weight as it is trained: fp32, and so is its gradient
SIDE_BY_SIDE = 2  # blocks that FSDP has whole at a time: the one at work, and the next
LOGITS = 12  # bytes a logit: log-softmax, its gradient and the logits', all fp32
DRAWN = 16  # bytes a logit while a token is drawn: logits, weights, these sorted, which are kept
PREFILL = 2048  # tokens of prompts that the engine reads at once
LITTLE = 2**14  # bytes of keys and values a token: up to it, twice as many samples go side by side


@dataclass(frozen=True)
class Training:
    """What matters of a training run.

    ranks: that hold the weights together. recompute: as in `dpo.blocks`. moment: bytes of each of
    Adam's two. offload: weights, gradients and moments wait elsewhere.
    tokens, scored: of the largest forward pass, padding included, and of those with a loss.
    attended: tokens that attention sees; more than `tokens` where a prompt's two answers share it
    and lines are padded.
    width: bytes of a number in the computation. accumulates: a rank takes several such passes a
    step. logits_at_once: numbers, as in `dpo.logprobs`. lora: the adapters that learn beside frozen
    weights, if they do.
    """

    ranks: int
    tokens: int
    attended: int
    scored: int
    width: int
    dropout: bool
    recompute: str
    accumulates: bool
    logits_at_once: int
    moment: int = MASTER
    offload: bool = False
    lora: Lora | None = None


@dataclass(frozen=True)
class Sampling:
    """What matters of sampling: samples side by side, of so many tokens each; prompts of so many,
    each with so many of the samples. ranks: that hold the model together.
    """

    width: int
    slots: int
    prompt_tokens: int
    new_tokens: int
    samples_a_prompt: int
    ranks: int = 1


@dataclass(frozen=True)
class Need:
    """Bytes of a rank at its worst moment, by what they are for."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())


def saved_by_block(config: LlamaConfig, how: Training) -> int:
    """Bytes that one block keeps for its backward pass.

    ```
      x  h  │ q k v  out, log-sum-exp  (folded)  │ x  h  │ w1  w3
    ```
    Beside frozen weights h is kept only by adapters that read it. Where the SwiGLU has adapters, it
    keeps silu too, and the product if these read it.
    """
    C, F, H, w = config.dim, config.ffn_dim, config.n_heads, how.width
    K = config.n_kv_heads * config.head_dim
    learn = TARGETS if how.lora is None else how.lora.targets
    inputs = any(n in learn for n in ("wq", "wk", "wv")) + any(n in learn for n in ("w1", "w3"))
    halves = 2 * (4 + (1 + how.dropout) * w * C) + inputs * w * C
    attended = (2 * C + 2 * K) * w + 4 * H  # q, out, k, v
    folded = w * C if how.attended != how.tokens and "wo" in learn else 0
    inner = (3 + ("w2" in learn) if _is_adapted(how) else 2) * F * w
    # whole adapters lie in fp32: each pass makes copies of them in the computation's type
    copies = 0 if _is_cut(how) or w == MASTER else w * _adapters(config, how)
    return how.tokens * (halves + folded + inner + _low(how)) + how.attended * attended + copies


def _low(how: Training) -> int:
    """Bytes of what a token's adapters of a block make: A x."""
    return how.lora.rank * len(how.lora.targets) * how.width if how.lora else 0


def _adapters(config: LlamaConfig, how: Training) -> int:
    return how.lora.block_parameter_count(config) if how.lora else 0


def _is_adapted(how: Training) -> bool:
    """Whether the SwiGLU has adapters: its backward pass is autograd's then."""
    return how.lora is not None and not {"w1", "w2", "w3"}.isdisjoint(how.lora.targets)


def _is_cut(how: Training) -> bool:
    """Whether FSDP holds the weights: whole ones must lie in the computation's type already."""
    return how.ranks > 1 or how.offload or (how.width != MASTER and how.lora is None)


def kept_by_block(config: LlamaConfig, how: Training) -> int:
    """Bytes of a block that wait for the backward pass: all, its input, or its input and what comes
    of its seven matrices and of attention.
    """
    if how.recompute == "none":
        return saved_by_block(config, how)
    C, K, w = config.dim, config.n_kv_heads * config.head_dim, how.width
    products = how.tokens * ((3 * C + 2 * K + 2 * config.ffn_dim) * w + _low(how))
    products += how.attended * (C * w + 4 * config.n_heads)
    return how.tokens * C * w + (products if how.recompute == "selective" else 0)


def training(config: LlamaConfig, how: Training) -> Need:
    """The need of SFT or DPO. With one micro-batch a step gradients come while activations go."""
    C, V, w, P = config.dim, config.vocab_size, how.width, config.parameter_count
    block = config.block_parameter_count
    root, added = P - config.n_layers * block, _adapters(config, how)
    learning = -(-(config.n_layers * added if how.lora else P) // how.ranks)
    states, moments = learning * MASTER, 2 * learning * how.moment
    frozen = -(-P // how.ranks) * w if how.lora else 0
    saves, head = saved_by_block(config, how), how.tokens * (4 + w) * C + how.scored * C * w
    logits = min(how.scored, max(1, how.logits_at_once // V)) * V * LOGITS
    # in a block's backward pass: gradients of the SwiGLU, and of one of its matrices; by hand what
    # they are made of is made there too (on a CPU, of some tokens at a time)
    made = 2 if _is_adapted(how) else 4
    backward = how.tokens * (made * config.ffn_dim + 2 * C) * w
    backward += (added if how.lora else config.ffn_dim * C) * w
    kept = config.n_layers * kept_by_block(config, how)
    kept += how.dropout * how.tokens * C * w  # the embeddings'
    working = max(head + logits, backward + (how.recompute != "none") * saves)
    # Ranks that share the weights have some whole while they compute, and gradients on their way:
    # the logits' table's, which stays to the end, and a block's; after the blocks, all the rest's.
    whole = w * (root + SIDE_BY_SIDE * (block + added))
    on_their_way = max((w + MASTER) * block + w * V * C, (w + MASTER) * root - kept - working)
    if how.lora:  # nothing of what is frozen
        on_their_way = (w + MASTER) * added
    gradients = states
    if not how.accumulates:
        gradients = max(0, states - kept)
    here = not how.offload
    return Need(
        {
            "weights": (frozen + states) * here,
            "gathered": (whole + on_their_way) * _is_cut(how),
            "gradients": gradients * here,
            "optimizer": moments * here,
            "activations": kept,
            "logits or a block at work": working,
        }
    )


def sampling(config: LlamaConfig, how: Sampling) -> Need:
    """The need of writing samples. A GPU's cache takes fewer samples where not all of them fit."""
    part = Split(config, 0, how.ranks)
    C, w, token = config.dim, how.width, kv_bytes(part.config, how.width)
    prompts = -(-how.slots // how.samples_a_prompt) * how.prompt_tokens * token
    own = how.slots * how.new_tokens * token
    # in the end the slots grow once more by copying, first the keys, then the values
    writing = own // 2 + how.slots * config.vocab_size * DRAWN
    # before there is anything of theirs
    reading = PREFILL * (4 * C + 3 * -(-config.ffn_dim // how.ranks)) * w - own
    return Need(
        {
            "weights": parameter_count(config, how.ranks) * w,
            "keys and values": prompts + own,
            "at work": max(reading, writing),
        }
    )


def kv_bytes(config: LlamaConfig, width: int) -> int:
    """Of the keys and values of one token."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * width


def slots_for(config: LlamaConfig, width: int) -> int:
    """Samples side by side, where nobody says how many.

    More of them make larger products and fewer steps, which a small model gains by; each takes
    memory for as long as it may get, which a small model has.
    """
    return 2048 if kv_bytes(config, width) <= LITTLE else 1024
