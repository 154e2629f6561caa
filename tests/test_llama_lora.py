"""Adapters: without effect at first, the formula's gradients, merged as they were apart."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_llama import GROUPED, tiny_model, tiny_tokenizer

from llama import Llama, fingerprint, load, save
from llama.checkpoint import unfilled
from llama.lora import TARGETS, Lora, LoraLinear, attach, begin, chosen, fold, merged, plain_state
from llama.parallel import start
from llama.weights import load_sharded, load_state

LORA = Lora(3, 6.0)
TOKENS = torch.randint(3, 400, (2, 20), generator=torch.Generator().manual_seed(1))


def adapted(lora: Lora = LORA, learnt: bool = False, dtype: torch.dtype = torch.float32) -> Llama:
    """With adapters drawn; as if they had learnt something, if so."""
    model = tiny_model().to(dtype)
    attach(model, lora)
    begin(model, "a seed")
    if learnt:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_first_the_model_is_the_frozen_one_to_the_bit(dtype: torch.dtype) -> None:
    model, plain = adapted(dtype=dtype), tiny_model().to(dtype)
    for grad in (torch.enable_grad, torch.no_grad):
        with grad():
            assert torch.equal(model(TOKENS), plain(TOKENS))
    assert fingerprint(model) == fingerprint(plain)
    assert not torch.equal(adapted(learnt=True)(TOKENS), tiny_model()(TOKENS))


def test_adapters_are_heard_beside_weights_that_lie_together() -> None:
    model = adapted(learnt=True)
    with torch.no_grad():
        apart = model(TOKENS)
        model.lay_together()
        assert torch.equal(model(TOKENS), apart)


def test_only_adapters_learn_and_they_are_kept_in_fp32() -> None:
    model = adapted(Lora(3, 6.0, ("wq", "w2")), dtype=torch.bfloat16)
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(learning) == {
        f"layers.{layer}.{half}.lora_{which}"
        for layer in (0, 1) for half in ("attention.wq", "ffn.w2") for which in "ab"
    }  # fmt: skip
    assert {weight.dtype for weight in learning.values()} == {torch.float32}
    count = Lora(3, 6.0, ("wq", "w2")).block_parameter_count(GROUPED)
    assert sum(weight.numel() for weight in learning.values()) == 2 * count


def test_outputs_and_gradients_are_those_of_the_sum_written_out() -> None:
    """y = (W + s B A) x by autograd in float64, against the module."""
    generator = torch.Generator().manual_seed(0)
    frozen = torch.nn.Linear(7, 5, bias=False, dtype=torch.float64).requires_grad_(False)
    ours = LoraLinear(frozen, Lora(2, 3.0)).double()
    a = torch.randn(2, 7, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    ours.lora_a.data.copy_(a.data)
    ours.lora_b.data.copy_(b.data)
    x = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64).requires_grad_()
    x_ours = x.detach().clone().requires_grad_()
    y, y_ours = F.linear(x, frozen.weight + 1.5 * b @ a), ours(x_ours)
    torch.testing.assert_close(y_ours, y)
    y.square().sum().backward()
    y_ours.square().sum().backward()
    for mine, theirs in ((ours.lora_a, a), (ours.lora_b, b), (x_ours, x)):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert frozen.weight.grad is None


def test_folded_and_saved_models_are_what_the_adapted_one_was(tmp_path: Path) -> None:
    model, before = adapted(learnt=True), plain_state(tiny_model())
    logits = model(TOKENS)
    save(model, tiny_tokenizer(), tmp_path / "apart")
    for name, weight in plain_state(model).items():  # saving changes nothing
        assert torch.equal(weight, before[name])
    print_of = fingerprint(model)
    fold(model)
    assert (model(TOKENS) - logits).abs().max() < 1e-5
    assert not any(w.any() for w in model.parameters() if w.requires_grad)
    saved, _ = load(tmp_path / "apart")
    assert fingerprint(saved) == print_of and list(saved.state_dict()) == list(before)
    torch.testing.assert_close(saved.state_dict(), plain_state(model), rtol=0, atol=1e-6)
    untouched = [name for name, weight in before.items()
                 if torch.equal(weight, plain_state(model)[name])]  # fmt: skip
    assert untouched == [name for name in before if name.split(".")[-2] not in TARGETS]


def test_a_sum_in_bf16_is_rounded_once() -> None:
    model = adapted(learnt=True, dtype=torch.bfloat16)
    linear = model.layers[1].ffn.w2
    exact = linear.weight.float() + 2.0 * linear.lora_b @ linear.lora_a
    assert torch.equal(merged(linear.weight, linear), exact.bfloat16())
    fold(model)
    assert torch.equal(linear.weight, exact.bfloat16())


def test_small_changes_are_lost_in_bf16_as_docs_scale_says() -> None:
    """What is left of them, along themselves, by their size relative to the weight."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(512, 512, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.normal_(0, 0.02, generator=generator)
    ours, left = LoraLinear(linear, Lora(16, 16.0)), []
    a, b = (torch.randn(shape, generator=generator) for shape in ((16, 512), (512, 16)))
    b *= linear.weight.float().norm() / (b @ a).norm()
    for size in (3e-2, 1e-2, 3e-3, 1e-3, 3e-4):
        ours.lora_a.data.copy_(a)
        ours.lora_b.data.copy_(size * b)
        change = size * b @ a
        found = merged(linear.weight, ours).float() - linear.weight.float()
        left.append(float((found * change).sum() / change.square().sum()))
    assert left == pytest.approx([1.0, 1.0, 0.93, 0.53, 0.18], abs=0.02)


def test_not_even_a_zero_s_sign_changes_where_nothing_was_learnt() -> None:
    model = adapted()
    weight = model.layers[0].attention.wq.weight
    weight[0, 0] = -0.0
    was = fingerprint(model)
    fold(model)
    assert fingerprint(model) == was and weight[0, 0].signbit()


def test_adapters_are_drawn_from_their_seed_and_name() -> None:
    model = adapted()
    first = [
        linear.lora_a.detach().clone()
        for linear in model.modules()
        if isinstance(linear, LoraLinear)
    ]
    begin(model, "another seed")
    assert not torch.equal(model.layers[0].attention.wq.lora_a, first[0])
    begin(model, "a seed")
    again = [linear.lora_a for linear in model.modules() if isinstance(linear, LoraLinear)]
    assert all(map(torch.equal, first, again))
    assert len({float(a[0, 0]) for a in first}) == len(first) == 14
    assert first[0].std() == pytest.approx(GROUPED.dim**-0.5, rel=0.3)


def test_loading_gives_silent_adapters_and_frozen_weights_in_the_computation_s_type(
    tmp_path: Path,
) -> None:
    save(tiny_model(), tiny_tokenizer(), tmp_path)
    model, _ = load_sharded(tmp_path, start(), torch.bfloat16, lora=LORA)
    plain, _ = load(tmp_path, torch.bfloat16)
    assert chosen(model) == LORA and chosen(plain) is None
    assert fingerprint(model) == fingerprint(plain)
    begin(model, "a seed")
    model.layers[0].attention.wq.lora_b.data.fill_(1.0)
    load_state(model, tmp_path)  # other weights: what was learnt beside the old ones goes
    assert fingerprint(model) == fingerprint(plain)


@pytest.mark.parametrize(
    ("lora", "complaint"),
    [
        ({"rank": -1}, "lora_rank must be at least 1, found -1"),
        ({"alpha": 0.0}, "lora_alpha must be above 0, found 0.0"),
        ({"alpha": float("nan")}, "lora_alpha must be above 0, found nan"),
        ({"targets": ("wq", "output")}, "lora_targets must be some of wq, .*found wq, output"),
        ({"targets": ("wq", "wq")}, "lora_targets .* each once, found wq, wq"),
        ({"targets": ()}, "lora_targets .* found none"),
        ({"rank": 13}, "lora_rank 13 is more than wk of 12 × 24 can have: at most 12"),
    ],
)
def test_what_cannot_be_is_refused(lora: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        attach(unfilled(GROUPED), Lora(**{"rank": 3, "alpha": 6.0, **lora}))
    attach(unfilled(GROUPED), Lora(24, 6.0, ("wq", "w2")))  # as much as these can have


def test_the_shapes_are_the_model_s() -> None:
    model = unfilled(GROUPED)
    for name, out, into in LORA.shapes(GROUPED):
        half = model.layers[0].ffn if name in ("w1", "w2", "w3") else model.layers[0].attention
        assert getattr(half, name).weight.shape == (out, into)
