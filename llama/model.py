"""Llama 2: token ids in, logits out.

Knows no rank, no file, no text, and neither cache nor mask: those are its `attention.Attend`'s.
"""

# B rows, T tokens, C width, V vocabulary, H query heads, G key-value heads, D head width, E = D / 2

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.attention import Attend, AttendWanted, CausalRows
from llama.config import LlamaConfig
from llama.fused import fused
from llama.norm import RMSNorm
from llama.product import Linear, product
from llama.swiglu import swiglu

Head = Callable[[Tensor, Callable[[Tensor], Tensor]], Any]


class Llama(nn.Module):
    """The transformer of Llama 2 (arXiv 2307.09288), rotary pairs half a head apart (see `rotate`).

    `dropout` is a probability that may be set at any time; it works in train mode only, on the
    embeddings and on what each half of a block adds to the residual.
    """

    def __init__(self, config: LlamaConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.computed_in: torch.dtype | None = None  # None: the type in which weights are stored
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.output = Linear(config.dim, config.vocab_size)

    def forward(
        self,
        tokens_BT: Tensor,
        attend: Attend | None = None,
        head: Head | None = None,
        wanted_N: Tensor | None = None,
    ) -> Any:
        """Logits BTV of the token after each token, or what `head` makes of the last hidden states.

        attend: who sees whom; by default every row is one text from its first token on, so that
          padding on the right is harmless.
        head: called as `head(hidden_BTC, project)`, where `project` turns hidden [..., C] into
          logits [..., V]. It runs inside the forward pass, where a sharded model has its output
          weights at hand; and logits for all tokens need never exist at once.
        wanted_N: places of tokens in the flattened [B·T]; logits NV, or hidden_NC, are of these
          alone. After the last attention nobody looks at the others, so they stop there; or, if
          `attend` is an `AttendWanted`, before it: the last block needs their keys and values.
        """
        attend = attend or CausalRows(tokens_BT.shape[1], tokens_BT.device)
        dropout = self.dropout if self.training else 0.0
        rotary = rotary_tables(attend.positions_BT, self.config.head_dim, self.config.rope_theta)
        x_BTC = F.dropout(self.tok_embeddings(tokens_BT), dropout)
        *blocks, last_block = self.layers
        for block in blocks:
            x_BTC = block(x_BTC, rotary, attend, dropout)
        hidden = self.norm(last_block(x_BTC, rotary, attend, dropout, wanted_N))
        return self.project(hidden) if head is None else head(hidden, self.project)

    def project(self, hidden_C: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        table = self.tok_embeddings if self.config.tie_embeddings else self.output
        return product(hidden_C, table.weight)

    @torch.inference_mode(False)  # a tensor made in it could not be trained afterwards
    @torch.no_grad()
    def lay_together(self) -> None:
        """Moves the weights that see the same input (wq wk wv, w1 w3) below each other in memory.

        For sampling on a GPU: one large product is faster there. Nothing else changes.
        """
        for block in self.layers:
            for names in (("wq", "wk", "wv"), ("w1", "w3")):
                half = block.attention if "wq" in names else block.ffn
                weights = [getattr(half, name).weight for name in names]
                if _as_one(weights) is None:
                    whole = torch.cat([weight.data for weight in weights])
                    for weight, part in zip(weights, whole.split([len(w) for w in weights])):
                        weight.data = part

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights, drawn in the order of `named_parameters()`.

        Matrices: normal with deviation 1/sqrt(fan-in), which keeps the scale at any width (a fixed
        0.02 learns far slower at width 128); the two that write to the residual are smaller by
        sqrt(2 · layers), so that its size does not grow with depth. Embeddings: 1/sqrt(width),
        because a tied table is an output matrix too. Norms: ones.
        """
        shrink = 1 / math.sqrt(2 * self.config.n_layers)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
                continue
            deviation = weight.shape[1] ** -0.5
            if name.endswith(("wo.weight", "w2.weight")):
                deviation *= shrink
            weight.normal_(0.0, deviation, generator=generator)


class Block(nn.Module):
    """Attention, then SwiGLU, each added to the residual after a norm of its own."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x_BTC: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: Attend,
        dropout: float,
        wanted_N: Tensor | None = None,
    ) -> Tensor:
        """The residual stream after this block; NC of the tokens that are wanted, if it says so."""
        attended = self.attention(self.attention_norm(x_BTC), rotary, attend, wanted_N)
        x = _taken(x_BTC, wanted_N) + F.dropout(attended, dropout)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), dropout)


class Attention(nn.Module):
    """Grouped-query attention; multi-head where G = H."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = Linear(config.dim, config.dim)
        self.wk = Linear(config.dim, kv_dim)
        self.wv = Linear(config.dim, kv_dim)
        self.wo = Linear(config.dim, config.dim)

    def forward(
        self,
        x_BTC: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: Attend,
        wanted_N: Tensor | None = None,
    ) -> Tensor:
        """What this layer's attention adds to the residual (of the wanted tokens)."""
        if wanted_N is not None and isinstance(attend, AttendWanted):
            return self._of_wanted(x_BTC, rotary, attend, wanted_N)
        q, k, v = map(self._heads, products(x_BTC, self.wq, self.wk, self.wv))
        q_BTHD, k_BTGD = _rotated(q, k, *rotary)
        seen_BTC = attend(self.layer, q_BTHD, k_BTGD, v).flatten(2)
        added: Tensor = self.wo(_taken(seen_BTC, wanted_N))
        return added

    def _of_wanted(
        self,
        x_BTC: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: AttendWanted,
        wanted_N: Tensor,
    ) -> Tensor:
        """The same, where tokens that are not wanted do not ask either, but are keys and values."""
        k_BTGD, v_BTGD = map(self._heads, products(x_BTC, self.wk, self.wv))
        q_1NHD = self._heads(self.wq(_taken(x_BTC, wanted_N)[None]))
        q_1NHD = rotate(q_1NHD, *(_taken(table, wanted_N)[None] for table in rotary))
        seen_1NHD = attend.wanted(self.layer, q_1NHD, rotate(k_BTGD, *rotary), v_BTGD)
        added: Tensor = self.wo(seen_1NHD[0].flatten(1))
        return added

    def _heads(self, x_BTC: Tensor) -> Tensor:
        x_BTHD: Tensor = x_BTC.unflatten(-1, (-1, self.head_dim))
        return x_BTHD


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.ffn_dim)
        self.w2 = Linear(config.ffn_dim, config.dim)
        self.w3 = Linear(config.dim, config.ffn_dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """What the feed-forward half adds to the residual."""
        matrices = self.w1, self.w2, self.w3
        if _plain(matrices) and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return swiglu(x_BTC, *(matrix.weight for matrix in matrices))
        gate_BTF, up_BTF = products(x_BTC, self.w1, self.w3)
        added_BTC: Tensor = self.w2(_gated(gate_BTF, up_BTF))
        return added_BTC


@fused(widths=1)
def _gated(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    return F.silu(gate_BTF) * up_BTF


def _taken(x_BTC: Tensor, wanted_N: Tensor | None) -> Tensor:
    return x_BTC if wanted_N is None else x_BTC.flatten(0, 1).index_select(0, wanted_N)


def products(x_BTC: Tensor, *linears: nn.Linear) -> Sequence[Tensor]:
    """What each of them makes of x: by one product where their weights lie together in memory."""
    apart = torch.is_grad_enabled() or torch.compiler.is_compiling() or not _plain(linears)
    whole = None if apart else _as_one([linear.weight for linear in linears])
    if whole is None:
        return [linear(x_BTC) for linear in linears]
    widths = [linear.out_features for linear in linears]
    several: Sequence[Tensor] = product(x_BTC, whole).split(widths, dim=-1)
    return several


def _plain(linears: Sequence[nn.Linear]) -> bool:
    """Whether a weight is all there is of each: no adapters beside it."""
    return all(type(linear) is Linear for linear in linears)


def _as_one(weights: Sequence[Tensor]) -> Tensor | None:
    """A view of matrices that lie below each other in memory; None where they do not."""
    first, rows, place = weights[0], 0, weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or not weight.is_contiguous():
            return None
        rows, place = rows + len(weight), place + weight.nbytes
    end = first.storage_offset() * first.element_size() + place - first.data_ptr()
    if end > first.untyped_storage().nbytes():  # neighbours by chance, each in memory of its own
        return None
    return first.as_strided((rows, first.shape[1]), first.stride())


def rotary_tables(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines BT1D of position × frequency theta^(-2e/D) (arXiv 2104.09864).

    fp32 whatever the model computes in: a bf16 position cannot tell 257 from 258.
    """
    exponent_E = torch.arange(0, head_dim, 2, device=positions_BT.device).float() / head_dim
    angle_BT1E = positions_BT[:, :, None, None].float() * (theta**-exponent_E)
    cos_BT1E, sin_BT1E = angle_BT1E.cos(), angle_BT1E.sin()
    return torch.cat((cos_BT1E, cos_BT1E), dim=-1), torch.cat((-sin_BT1E, sin_BT1E), dim=-1)


@fused(widths=2)
def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(q, cos, sin), rotate(k, cos, sin)


def rotate(x_BTHD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor) -> Tensor:
    """Turns each pair (x[e], x[e + D/2]), as Hugging Face does; fp32 tables lift bf16 inputs."""
    half = x_BTHD.shape[-1] // 2
    turned_BTHD = x_BTHD * cos_BT1D + x_BTHD.roll(half, dims=-1) * sin_BT1D
    return turned_BTHD.to(x_BTHD.dtype)
