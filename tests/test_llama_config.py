"""Model shapes: known sizes, both file formats there and back, refusal of what is no Llama 2."""

import math
from dataclasses import fields, replace

import pytest

from llama.config import PRESETS, LlamaConfig, from_hf, from_meta, to_hf

SMALL = LlamaConfig(
    vocab_size=97, dim=64, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=160, max_seq_len=128
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("7B", 6_738_415_616), ("13B", 13_015_864_320), ("70B", 68_976_648_192), ("tiny", 857_216)],
)
def test_published_parameter_counts(name, parameters):
    assert PRESETS[name].parameter_count == parameters


@pytest.mark.parametrize("config", [*PRESETS.values(), SMALL, replace(SMALL, norm_eps=1e-6)])
def test_there_and_back(config):
    assert from_hf(to_hf(config, "bfloat16")) == config


@pytest.mark.parametrize("tie", [False, True])
def test_transformers_reads_ours_and_we_read_theirs(tie):
    from transformers import LlamaConfig as Theirs

    config = replace(SMALL, tie_embeddings=tie, rope_theta=500.0)
    theirs = Theirs.from_dict(to_hf(config))
    assert theirs.num_key_value_heads == 2 and theirs.tie_word_embeddings is tie
    assert from_hf(theirs.to_dict()) == config


def test_older_and_newer_spellings():
    settings = to_hf(SMALL)
    newer = {name: value for name, value in settings.items() if name != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 777.0}
    assert from_hf(newer).rope_theta == 777.0
    assert from_hf(settings | {"rope_scaling": None, "rope_theta": 777.0}).rope_theta == 777.0
    assert from_hf(settings | {"num_key_value_heads": None}).n_kv_heads == 4
    assert from_hf(settings | {"head_dim": 16}) == SMALL


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling asks for 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters asks for 'llama3'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "holds 'full_attention'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "holds 'partial_rotary_factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": None}, "model_type"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": -64}, "dim must be above 0"),
        ({"hidden_size": 2**40}, "dim must be above 0 and at most"),
        ({"hidden_size": "64"}, "dim must be a number of type int, found '64'"),
        ({"hidden_size": 64.0}, "dim must be a number of type int"),
        ({"hidden_size": True}, "dim must be a number of type int"),
        ({"hidden_size": 66}, "dim 66 is not a multiple of n_heads 4"),
        ({"hidden_size": 60}, "needs it even"),
        ({"num_key_value_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"num_hidden_layers": 0}, "n_layers"),
        ({"vocab_size": 10**9}, "vocab_size"),
        ({"rms_norm_eps": math.nan}, "norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "norm_eps"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_embeddings must be true or false"),
        ({"max_position_embeddings": 0}, "max_seq_len"),
    ],
)
def test_refuses_what_is_no_llama_2(change, complaint):
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        from_hf(to_hf(SMALL) | change)


def test_what_says_nothing_of_the_computation_is_passed_over():
    real = {
        "_name_or_path": "x", "initializer_range": 0.02, "pretraining_tp": 2, "use_cache": True,
        "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "pad_token_id": 0,
        "rope_scaling": None, "attention_dropout": 0.0, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    assert from_hf(to_hf(SMALL) | real) == SMALL


def test_code_llama_s_files():
    """Other positions and, in the small ones, 16 more pieces; Meta's file leaves those out."""
    params = {
        "dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-5, "rope_theta": 1000000,
    }  # fmt: skip
    wanted = replace(PRESETS["7B"], vocab_size=32016, rope_theta=1e6)
    assert from_meta(params, vocab_size=32016) == wanted
    assert from_hf(to_hf(wanted) | {"rope_theta": 1000000}) == wanted


def test_meta_files_of_the_three_sizes():
    common = {"multiple_of": 256, "norm_eps": 1e-05, "vocab_size": -1}
    files = {
        "7B": {"dim": 4096, "n_heads": 32, "n_layers": 32},
        "13B": {"dim": 5120, "n_heads": 40, "n_layers": 40},
        "70B": {
            "dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80,
            "multiple_of": 4096, "ffn_dim_multiplier": 1.3,
        },
    }  # fmt: skip
    for name, params in files.items():
        for stated in (
            common | params,
            common | params | {"vocab_size": 32000},
            params | {"norm_eps": 1e-5},
        ):
            multiple = {"multiple_of": params.get("multiple_of", 256)}
            assert from_meta(stated | multiple, vocab_size=32000) == PRESETS[name]
        wider = common | params | {"vocab_size": 32001}
        assert from_meta(wider, vocab_size=32000).vocab_size == 32001


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dim": None}, "'dim' is missing"),
        ({"dim": "4096"}, "dim must be a number"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"ffn_dim_multiplier": 1e9}, "ffn_dim_multiplier"),
        ({"n_heads": 33}, "not a multiple of n_heads"),
        ({"vocab_size": 0}, "vocab_size must be above 0"),
        ({"use_scaled_rope": True}, "use_scaled_rope asks for Llama 3.1"),
        ({"moe_args": {"num_experts": 16}}, "'moe_args' is no field of Llama 2"),
    ],
)
def test_refuses_damaged_meta_files(change, complaint):
    params = {"dim": 4096, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-5}
    with pytest.raises(ValueError, match=complaint):
        from_meta(params | change, vocab_size=32000)


def test_every_field_reaches_the_file():
    """A config that differs in one field differs in its file."""
    other = LlamaConfig(101, 32, 5, 8, 8, 96, 1e-6, 5e5, 64, True)
    for field in fields(LlamaConfig):
        name = field.name
        value = 1 if name == "n_kv_heads" else getattr(other, name)  # must divide n_heads
        changed = {name: value} | ({"n_kv_heads": 2} if name == "n_heads" else {})
        assert to_hf(replace(SMALL, **changed)) != to_hf(SMALL), name
