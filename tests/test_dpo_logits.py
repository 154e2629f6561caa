"""What the logits of a large vocabulary take in training: measured, as memory of a process."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from bench.memory import memory
from dpo.logprobs import chunk_for, chunked_logps

# meant are 8 pairs of 1024 tokens, which are but more chunks: 16 to 32 of them (docs/training.md)
V, C = 32_000, 16  # Llama 2's words; so narrow that hidden states and weights are nothing beside
CHUNK = chunk_for(V)
GOAL = 0.3e9  # bytes


def peak(tokens: int, chunk: int) -> int:
    """Bytes that both passes take at most above what was there, in a process of their own. A fork
    would take what is free here, of other tests, and not count it.
    """
    command = [sys.executable, __file__, str(tokens), str(chunk)]
    return int(subprocess.check_output(command))


def passes(tokens: int, chunk: int) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden_NC = torch.randn(tokens, C, generator=draw, requires_grad=True)
    weight_VC = torch.randn(V, C, generator=draw, requires_grad=True)
    target_N = torch.randint(V, (tokens,), generator=draw)
    count_S = torch.tensor([tokens // 2, tokens - tokens // 2])
    logp_S = chunked_logps(hidden_NC, lambda h: F.linear(h, weight_VC), target_N, count_S, chunk)
    logp_S.sum().backward()


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_logits_take_little_however_many_tokens() -> None:
    few, more = peak(2 * CHUNK, CHUNK), peak(4 * CHUNK + 140, CHUNK)
    assert 0.5 * GOAL < few < GOAL  # three times a chunk's logits: they are seen
    assert more < few + 0.1 * GOAL  # a last chunk of 140 would leave blocks that glibc keeps


def test_all_logits_at_once_take_more() -> None:
    """Negative control: in one chunk."""
    assert peak(2 * CHUNK, 2 * CHUNK) > GOAL


if __name__ == "__main__":
    passes(40, 20)  # code is read and buffers made when first used
    before = memory("VmRSS")
    passes(*map(int, sys.argv[1:]))
    print(memory("VmHWM") - before)
