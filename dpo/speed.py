"""What a training step takes of operations, and what share of a card's peak that is (MFU).

```
  operations a token = 6 N + 12 · L · d · s        MFU = operations / (seconds · peak · cards)
```
L blocks of width d, a line of s tokens. N: all weights but the table of the embeddings, which is
looked up and not multiplied; a table that also makes the logits counts once. What is computed again
in the backward pass does not count, and causal attention counts in full (Chowdhery et al. 2022,
PaLM, appendix B). Of weights that are frozen beside adapters no gradients are computed: 4 N; the
adapters themselves are too small to count. Knows no model and no run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from llama.config import LlamaConfig

# bf16 on the tensor cores, without sparsity, sums in fp32, in TFLOP/s: NVIDIA's data sheets of the
# cards, half of what they print where that is with sparsity (L4, H100, H200); for the GeForce cards
# the white papers of GA102 and AD102. Names as `torch.cuda.get_device_name` has them.
PEAKS = {
    r"A100\b.*": 312,
    r"A30": 165,
    r"A40": 149.7,
    r"A10": 125,
    r"L4": 121,
    r"L40": 181,
    r"L40S": 362,
    r"H100 PCIe": 756,
    r"H100 NVL": 835,
    r"H100 80GB HBM3": 989,  # SXM
    r"H200": 989,  # SXM
    r"GeForce RTX 3090": 71,
    r"GeForce RTX 4090": 165,
}


def peak(device: torch.device) -> float | None:
    """Operations a second that the card can do in bf16; None if it is not in the table.

    A part of a card (MIG) and a card for laptops have other names, and are none of these.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    if "MIG" in name:
        return None
    return next((rate * 1e12 for card, rate in PEAKS.items() if re.fullmatch(card, name)), None)


def operations(config: LlamaConfig, lengths: Iterable[int], frozen: bool = False) -> int:
    """Of a step over lines of these lengths, by the formula above.

    frozen: only adapters learn.
    """
    table = 0 if config.tie_embeddings else config.vocab_size * config.dim
    weights = (4 if frozen else 6) * (config.parameter_count - table)
    attention = 12 * config.n_layers * config.dim
    return sum(s * (weights + attention * s) for s in lengths)
