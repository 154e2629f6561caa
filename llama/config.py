"""The shape of a Llama 2 model, and the two file formats that describe it.

Knows Hugging Face's `config.json` and Meta's `params.json` as dictionaries already parsed. Knows no
tensor, no file and no tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

# No Llama 2 comes near these: a file that asks for more is damaged or hostile, and is refused
# before any memory is taken for it.
LARGEST = {
    "vocab_size": 2**20,
    "dim": 2**17,
    "n_layers": 2**12,
    "n_heads": 2**12,
    "n_kv_heads": 2**12,
    "ffn_dim": 2**20,
    "max_seq_len": 2**24,
    "norm_eps": 1.0,
    "rope_theta": 1e12,
    "multiple_of": 2**20,
    "ffn_dim_multiplier": 64.0,
}


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama 2 model; the defaults are Llama 2 7B.

    Raises ValueError, naming the field, for a shape that cannot be.
    """

    vocab_size: int = 32000
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int = 32
    ffn_dim: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_seq_len: int = 4096
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_field(field.name, str(field.type), getattr(self, field.name))
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(f"dim / n_heads is {self.head_dim}; rotary embedding needs it even")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def parameter_count(self) -> int:
        """Number of weights; a tied output is counted once."""
        tables = 1 if self.tie_embeddings else 2
        rest = tables * self.vocab_size * self.dim + self.dim
        return self.n_layers * self.block_parameter_count + rest

    @property
    def block_parameter_count(self) -> int:
        """Of them, those of one block."""
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        return attention + 3 * self.dim * self.ffn_dim + 2 * self.dim


def _check_field(name: str, kind: str, value: object) -> None:
    if kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, found {value!r}")
        return
    wanted = int if kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ValueError(f"{name} must be a number of type {kind}, found {value!r}")
    if not (0 < value <= LARGEST[name] and math.isfinite(value)):
        raise ValueError(f"{name} must be above 0 and at most {LARGEST[name]}, found {value!r}")


PRESETS: dict[str, LlamaConfig] = {
    "7B": LlamaConfig(),
    "13B": LlamaConfig(dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, ffn_dim=13824),
    "70B": LlamaConfig(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28672),
    "tiny": LlamaConfig(
        vocab_size=512,
        dim=128,
        n_layers=4,
        n_heads=4,
        n_kv_heads=4,
        ffn_dim=344,
        max_seq_len=512,
        tie_embeddings=True,
    ),
}


def from_hf(settings: Mapping[str, Any]) -> LlamaConfig:
    """Reads a Hugging Face `config.json`, older or newer.

    Raises ValueError for a missing or mistyped field, and for every setting that makes the model
    another than Llama 2: its `model_type`, scaled positions, biases, a different activation,
    weights that are quantized. What says nothing of the computation is passed over.
    """
    _refuse_other_models(settings)
    heads = _need(settings, "num_attention_heads")
    kv_heads = settings.get("num_key_value_heads")
    rope = settings.get("rope_parameters") or {}
    tied = settings.get("tie_word_embeddings")
    config = LlamaConfig(
        vocab_size=_need(settings, "vocab_size"),
        dim=_need(settings, "hidden_size"),
        n_layers=_need(settings, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads if kv_heads is None else kv_heads,
        ffn_dim=_need(settings, "intermediate_size"),
        norm_eps=settings.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", settings.get("rope_theta", 10000.0)),
        max_seq_len=settings.get("max_position_embeddings", 2048),
        tie_embeddings=False if tied is None else tied,
    )
    head_dim = settings.get("head_dim")
    if head_dim is not None and head_dim != config.head_dim:
        raise ValueError(
            f"head_dim is {head_dim!r}; hidden_size / num_attention_heads is {config.head_dim}"
        )
    return config


# Settings that make another model of it: what Llama 2 has, and what else comes to the same.
# (pretraining_tp is none of them: it only cuts the same products into parts.)
_SAME_AS_LLAMA: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "num_local_experts": (None, 0),
    "logit_scale": (None, 1.0),
}


def _need(settings: Mapping[str, Any], name: str) -> Any:
    if settings.get(name) is None:
        raise ValueError(f"the field {name!r} is missing")
    return settings[name]


def _refuse_other_models(settings: Mapping[str, Any]) -> None:
    for name, (llama, *meaningless) in _SAME_AS_LLAMA.items():
        if (found := settings.get(name, llama)) not in (llama, *meaningless):
            raise ValueError(f"{name} is {found!r}; Llama 2 has {llama!r}")
    if settings.get("model_type") is None:
        raise ValueError("the field 'model_type' is missing")
    for name in ("rope_parameters", "rope_scaling"):
        table = settings.get(name) or {}
        if not isinstance(table, Mapping):
            raise ValueError(f"{name} must be an object or null, found {table!r}")
        kind = table.get("rope_type", table.get("type", "default"))
        if kind != "default":
            later = " (Llama 3.1 and later)" if kind == "llama3" else ""
            raise ValueError(f"{name} asks for {kind!r} positions{later}; Llama 2 has the default")
        if extra := set(table) - {"rope_type", "type", "rope_theta"}:
            raise ValueError(f"{name} holds {min(extra)!r}, which Llama 2's positions do not have")


def to_hf(
    config: LlamaConfig, dtype: str = "float32", bos_id: int = 1, eos_id: int = 2
) -> dict[str, Any]:
    """The `config.json` that Hugging Face tools read. `dtype` is a name such as "bfloat16"."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }


_META = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "rope_theta", "vocab_size",
    "multiple_of", "ffn_dim_multiplier", "use_scaled_rope",
)  # fmt: skip


def from_meta(params: Mapping[str, Any], vocab_size: int, max_seq_len: int = 4096) -> LlamaConfig:
    """Reads Meta's `params.json`, which leaves the context length to the reader and, where its
    vocab_size is -1 or missing, the vocabulary too. Raises ValueError for a missing, an impossible
    and an unknown field, for what it would change is unknown too.
    """
    if unknown := {name for name in params if name not in _META}:
        raise ValueError(f"{min(unknown)!r} is no field of Llama 2's")
    if params.get("use_scaled_rope"):
        raise ValueError("use_scaled_rope asks for Llama 3.1's positions; Llama 2 has the default")
    stated = params.get("vocab_size")
    heads = _need(params, "n_heads")
    kv_heads = params.get("n_kv_heads")
    return LlamaConfig(
        vocab_size=vocab_size if stated in (None, -1) else stated,
        dim=_need(params, "dim"),
        n_layers=_need(params, "n_layers"),
        n_heads=heads,
        n_kv_heads=heads if kv_heads is None else kv_heads,
        ffn_dim=_meta_ffn_dim(params),
        norm_eps=_need(params, "norm_eps"),
        rope_theta=params.get("rope_theta", 10000.0),
        max_seq_len=max_seq_len,
    )


def _meta_ffn_dim(params: Mapping[str, Any]) -> int:
    """Two thirds of 4 · dim, perhaps widened, rounded up to a multiple: Meta's way to state it."""
    dim: int = params["dim"]
    multiple: int = params.get("multiple_of", 256)
    multiplier = params.get("ffn_dim_multiplier")
    _check_field("dim", "int", dim)
    _check_field("multiple_of", "int", multiple)
    width = 8 * dim // 3
    if multiplier is not None:
        _check_field("ffn_dim_multiplier", "float", multiplier)
        width = int(multiplier * width)
    return -(-width // multiple) * multiple
