"""The same weights as a file of llama.cpp's. Knows no clock.

Needs the package `gguf`, whose table of names turns Hugging Face's into llama.cpp's. Rotary
embedding turns neighbouring pairs there, as in Meta's layout.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from llama import Llama
from llama.huggingface import hf_names
from llama.meta import pairs_from_halves


def write_gguf(model: Llama, path: Path) -> None:
    """The model in fp32, without a vocabulary: for those who bring token ids."""
    gguf = import_module("gguf")
    config, theirs = (
        model.config,
        gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.n_layers),
    )
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    state = model.state_dict()
    for ours, name in hf_names(config).items():
        weight = pairs_from_halves(ours, state[ours].float(), config)
        writer.add_tensor(theirs.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
