"""The same weights as a model of `transformers`. Knows no clock."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llama import Llama
from llama.config import to_hf
from llama.huggingface import hf_names


def transformers_twin(model: Llama) -> Any:
    """A `LlamaForCausalLM` with copies of the model's weights, in evaluation mode."""
    # not by `import`: mypy would read all of transformers, for minutes
    transformers = import_module("transformers")
    twin = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(to_hf(model.config)))
    names = hf_names(model.config)
    state = {names[name]: weight for name, weight in model.state_dict().items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    twin.tie_weights()
    return twin.eval()
