"""The forward pass: parity with `transformers`, who sees whom, dropout, heads and fresh weights."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_llama import GROUPED, same_weights, tiny_model
from torch import Tensor

from llama import model as model_module
from llama.config import PRESETS, LlamaConfig, to_hf
from llama.huggingface import hf_names
from llama.model import Llama, rotary_tables, rotate


def miniature(name: str, by: int, heads_by: int) -> LlamaConfig:
    """A preset's proportions at a smaller size; its query heads a key-value head stay."""
    real = PRESETS[name]
    return replace(
        real, dim=real.dim // by, ffn_dim=real.ffn_dim // by, n_layers=2, vocab_size=400,
        n_heads=real.n_heads // heads_by, n_kv_heads=max(1, real.n_kv_heads // heads_by),
    )  # fmt: skip


SHAPES = {
    "like 7B": miniature("7B", 32, 8),
    "like 13B": miniature("13B", 32, 8),
    "like 70B": miniature("70B", 64, 4),
    "like Code Llama": replace(miniature("7B", 64, 8), rope_theta=1e6, ffn_dim=171),
    "multi-head": replace(GROUPED, n_kv_heads=4),
    "grouped": GROUPED,
    "one key-value head, tied": replace(GROUPED, n_kv_heads=1, tie_embeddings=True),
}


def some_tokens(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(GROUPED.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def transformers_twin(model: Llama):
    """The same weights in `transformers`' model."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    twin = LlamaForCausalLM(TheirConfig.from_dict(to_hf(model.config))).eval()
    names = hf_names(model.config)
    state = {names[name]: weight for name, weight in model.state_dict().items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@torch.inference_mode()
def test_logits_are_those_of_transformers(config: LlamaConfig) -> None:
    model = tiny_model(config)
    tokens_BT = some_tokens(3, 70)
    ours, theirs = model(tokens_BT), transformers_twin(model)(tokens_BT).logits
    assert ours.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-4


def test_miniatures_keep_the_proportions() -> None:
    assert SHAPES["like 7B"].ffn_dim / 128 == PRESETS["7B"].ffn_dim / 4096
    large = SHAPES["like 70B"]
    assert large.n_heads == 8 * large.n_kv_heads and large.n_kv_heads > 1
    assert large.ffn_dim / large.dim == 3.5


@torch.inference_mode()
def test_parity_notices_the_other_rotary_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: Meta pairs neighbours, Hugging Face pairs halves."""

    def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x[..., 0::2], x[..., 1::2]
        cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., cos.shape[-1] // 2 :]
        return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)

    model, tokens_BT = tiny_model(), some_tokens(1, 20)
    right = model(tokens_BT)
    monkeypatch.setattr("llama.model.rotate", neighbours)
    assert (model(tokens_BT) - right).abs().max() > 1e-2


@torch.inference_mode()
def test_a_token_sees_no_later_one_and_padding_is_harmless() -> None:
    model, tokens_BT = tiny_model(), some_tokens(2, 30)
    logits = model(tokens_BT)
    changed = tokens_BT.clone()
    changed[:, 20:] = some_tokens(2, 10, seed=1)
    assert (model(changed)[:, :20] - logits[:, :20]).abs().max() < 1e-5
    assert (model(changed)[:, 20:] - logits[:, 20:]).abs().max() > 1e-2
    assert (model(tokens_BT[:, :20]) - logits[:, :20]).abs().max() < 1e-5


def test_rotation_depends_on_distance_alone() -> None:
    q, k = torch.randn(
        2, 1, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def score(q_at: int, k_at: int) -> float:
        tables = [rotary_tables(torch.tensor([[at]]), 16, 10000.0) for at in (q_at, k_at)]
        return float((rotate(q, *tables[0]) * rotate(k, *tables[1])).sum())

    assert math.isclose(score(5, 2), score(1003, 1000), abs_tol=1e-4)
    assert abs(score(5, 2) - score(5, 3)) > 1e-3
    assert torch.equal(rotate(q, *rotary_tables(torch.tensor([[0]]), 16, 10000.0)), q)


def test_rotary_tables_stay_sharp_in_bfloat16() -> None:
    model = tiny_model().bfloat16()
    cos_BT1D, _ = rotary_tables(torch.arange(300)[None], model.config.head_dim, 10000.0)
    assert cos_BT1D.dtype == torch.float32
    assert not torch.equal(cos_BT1D[0, 257], cos_BT1D[0, 258])
    assert model(some_tokens(1, 5)).dtype == torch.bfloat16


def test_the_head_runs_inside_the_forward_pass() -> None:
    model, tokens_BT = tiny_model(), some_tokens(2, 9)

    def last(hidden_BTC: Tensor, project):
        assert hidden_BTC.shape == (2, 9, GROUPED.dim)
        return project(hidden_BTC[:, -1])

    assert torch.allclose(model(tokens_BT, head=last), model(tokens_BT)[:, -1], atol=1e-6)


def test_only_what_is_wanted_is_computed_to_the_end() -> None:
    model, tokens_BT = tiny_model(), some_tokens(2, 9)
    wanted_N = torch.tensor([3, 17, 3, 9])  # in any order, a place more than once
    seen = []
    watch = model.layers[-1].ffn.register_forward_hook(lambda ffn, given, out: seen.append(out))
    found_NV = model(tokens_BT, wanted_N=wanted_N)
    watch.remove()
    assert seen[0].shape == (4, GROUPED.dim)
    all_BTV = model(tokens_BT)
    torch.testing.assert_close(found_NV, all_BTV.flatten(0, 1)[wanted_N], atol=1e-5, rtol=0)
    weights = list(model.parameters())
    found = torch.autograd.grad(found_NV.square().sum(), weights)
    expected = torch.autograd.grad(all_BTV.flatten(0, 1)[wanted_N].square().sum(), weights)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert model(tokens_BT, wanted_N=wanted_N[:0]).shape == (0, GROUPED.vocab_size)


def test_dropout_works_in_train_mode_only_and_can_be_changed() -> None:
    model, tokens_BT = tiny_model(), some_tokens(2, 9)
    plain = model(tokens_BT)
    model.dropout = 0.5
    assert torch.equal(model(tokens_BT), plain)
    model.train()
    torch.manual_seed(0)
    first = model(tokens_BT)
    torch.manual_seed(0)
    assert torch.equal(model(tokens_BT), first) and not torch.allclose(model(tokens_BT), first)
    model.dropout = 0.0
    assert torch.equal(model(tokens_BT), plain)


@pytest.mark.parametrize("config", [PRESETS["tiny"], *SHAPES.values()])
def test_fresh_weights(config: LlamaConfig) -> None:
    model, again = Llama(config), Llama(config)
    for made in (model, again):
        made.init_weights(torch.Generator().manual_seed(7))
    assert sum(weight.numel() for weight in model.parameters()) == config.parameter_count
    assert list(model.state_dict()) == list(hf_names(config))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    tokens_BT = some_tokens(4, 64) % config.vocab_size
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(
            model(tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
        )
    assert abs(loss - math.log(config.vocab_size)) < 1.5  # neither sure of itself nor blown up


def test_gradients_reach_every_weight() -> None:
    model = tiny_model().train()
    model(some_tokens(2, 12)).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_weights_that_lie_together_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, apart = tiny_model(GROUPED), tiny_model(GROUPED)
    tokens_BT = torch.arange(40).view(2, 20)
    model.lay_together()
    assert same_weights(model, apart)
    pointers = [weight.data_ptr() for weight in model.parameters()]
    model.lay_together()  # again: nothing to do
    assert pointers == [weight.data_ptr() for weight in model.parameters()]
    seen, linear = [], model_module.F.linear

    def watched(x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
        seen.append(tuple(weight.shape))
        return linear(x, weight)

    monkeypatch.setattr(model_module.F, "linear", watched)
    with torch.no_grad():
        together, alone = model(tokens_BT), apart(tokens_BT)
    assert (together - alone).abs().max() < 1e-5
    assert seen.count((48, 24)) == seen.count((72, 24)) == GROUPED.n_layers  # wq wk wv, w1 w3
    seen.clear()
    assert (model(tokens_BT) - apart(tokens_BT)).abs().max() == 0  # with gradients each its own
    assert (48, 24) not in seen
    with torch.no_grad():
        model.layers[0].attention.wk.weight.add_(1)  # a step of the optimizer, in place
        apart.layers[0].attention.wk.weight.add_(1)
        assert (model(tokens_BT) - apart(tokens_BT)).abs().max() < 1e-5


def test_weights_that_are_neighbours_by_chance_are_not_taken_for_one() -> None:
    both = torch.arange(24.0).view(6, 4)
    assert model_module._as_one([both[:2], both[2:]]).tolist() == both.tolist()
    assert model_module._as_one([both[2:], both[:2]]) is None
    assert model_module._as_one([both[:2], both[2:].clone()]) is None
    assert model_module._as_one([both[:2, :2], both[2:, :2]]) is None
