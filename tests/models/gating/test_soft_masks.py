"""Gates in the forward pass: official placements, gradients, and no trace after removal."""

import copy

import pytest
import torch
from torch import Tensor

from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.soft_masks import Gates, apply_gates, apply_masks
from prunebench.models.tiny import FAMILIES, random_masks, random_tokens, tiny_model


def soft_gates(anatomy, *, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return (0.2 + 0.8 * torch.rand(count, generator=generator)).requires_grad_(requires_grad)

    sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
    return Gates(
        kv_groups=[draw(groups) for _, groups, _ in sizes],
        ffn=[draw(channels) for _, _, channels in sizes],
        hidden=draw(anatomy.hidden_size),
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_gates_of_one_change_nothing_and_removal_leaves_no_trace(family):
    model, tokens = tiny_model(family), random_tokens()
    anatomy = Anatomy.from_model(model)
    plain = model(tokens).logits
    keys, hooks = list(model.state_dict()), sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    ones = Gates([torch.ones(2)] * 3 if anatomy.layers[0].attention.num_kv_groups == 2 else [torch.ones(1)] * 3, hidden=torch.ones(32))
    with apply_gates(model, anatomy, ones):
        assert torch.equal(model(tokens).logits, plain)
    with apply_gates(model, anatomy, soft_gates(anatomy)):
        assert not torch.equal(model(tokens).logits, plain)
    assert torch.equal(model(tokens).logits, plain)
    assert list(model.state_dict()) == keys
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_residual_dimension_with_gate_zero_is_zero_everywhere(family):
    model, tokens = tiny_model(family), random_tokens()
    anatomy = Anatomy.from_model(model)
    gates = soft_gates(anatomy)
    gates.hidden[::3] = 0
    with apply_gates(model, anatomy, gates):
        states = model(tokens, output_hidden_states=True).hidden_states
    for state in states:
        assert state[..., ::3].abs().max() == 0
        assert state.abs().max() > 0


def test_soft_gates_fold_into_the_weights_that_they_scale():
    """Head gates scale o columns, channel gates down columns, the residual gate embedding columns and o, down rows."""
    model, tokens = tiny_model("llama"), random_tokens()
    anatomy = Anatomy.from_model(model)
    gates = soft_gates(anatomy)
    folded = copy.deepcopy(model)
    with torch.no_grad():
        folded.model.embed_tokens.weight *= gates.hidden
        for i, layer in enumerate(folded.model.layers):
            layer.self_attn.o_proj.weight *= gates.kv_groups[i].repeat_interleave(16) * gates.hidden[:, None]
            layer.mlp.down_proj.weight *= gates.ffn[i] * gates.hidden[:, None]
        with apply_gates(model, anatomy, gates):
            soft = model(tokens).logits
        torch.testing.assert_close(soft, folded(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "phi3"])
@torch.no_grad()
def test_mlp_placements_agree_on_hard_gates_and_differ_on_soft_ones(family):
    model, tokens = tiny_model(family), random_tokens()
    anatomy = Anatomy.from_model(model)

    def logits(gates, placement):
        with apply_gates(model, anatomy, gates, mlp_placement=placement):
            return model(tokens).logits

    hard = Gates(ffn=[(gate > 0.5).float() for gate in soft_gates(anatomy).ffn])
    torch.testing.assert_close(logits(hard, "product"), logits(hard, "branches"), atol=1e-5, rtol=1e-5)
    soft = Gates(ffn=soft_gates(anatomy).ffn)
    assert (logits(soft, "product") - logits(soft, "branches")).abs().max() > 1e-3


def test_gates_receive_gradients_and_may_be_drawn_anew():
    model, tokens = tiny_model("qwen3"), random_tokens()
    anatomy = Anatomy.from_model(model)
    gates = soft_gates(anatomy, requires_grad=True)
    with apply_gates(model, anatomy, gates):
        model(tokens, labels=tokens).loss.backward()
        assert all(gate.grad is not None and gate.grad.abs().max() > 0 for gate in (*gates.kv_groups, *gates.ffn, gates.hidden))
        first = model(tokens).logits
        gates.hidden = gates.hidden.detach() * 0.5
        assert not torch.equal(model(tokens).logits, first)


def test_a_removed_unit_gets_no_gradient_into_its_own_weights():
    model, tokens = tiny_model("llama"), random_tokens()
    anatomy = Anatomy.from_model(model)
    masks = random_masks(anatomy, seed=1)
    with apply_masks(model, anatomy, masks):
        model(tokens, labels=tokens).loss.backward()
    for i, layer in enumerate(model.model.layers):
        gone = ~masks.ffn[i]
        assert gone.any()
        for gradient in (
            layer.mlp.gate_proj.weight.grad[gone],
            layer.mlp.up_proj.weight.grad[gone],
            layer.mlp.down_proj.weight.grad[:, gone],
        ):
            assert gradient.abs().max() == 0
        assert layer.mlp.gate_proj.weight.grad[~gone].abs().max() > 0


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("placement", ["product", "branches"])
@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2"])
def test_each_part_of_a_row_meets_its_own_gates(family, placement, in_training):
    """As two parts alone, each under its own gates: states and the gradients of the gates; the last part goes to the row's end."""
    model = tiny_model(family)
    anatomy = Anatomy.from_model(model)
    rows = [soft_gates(anatomy, seed=seed, requires_grad=True) for seed in (1, 2)]
    tokens = random_tokens(1, 20, seed=3)
    alone = []
    for gates, part in zip(rows, tokens.split([8, 12], dim=1), strict=True):
        with apply_gates(model, anatomy, gates, mlp_placement=placement):
            alone.append(model.get_submodule("model")(part).last_hidden_state)
    torch.cat(alone, 1).square().sum().backward()

    def both(name):
        first, second = (getattr(gates, name) for gates in rows)
        if isinstance(first, Tensor):
            return torch.stack([first.detach(), second.detach()]).requires_grad_()
        return [torch.stack([a.detach(), b.detach()]).requires_grad_() for a, b in zip(first, second, strict=True)]

    together = Gates(kv_groups=both("kv_groups"), ffn=both("ffn"), hidden=both("hidden"), parts=(8, 5))
    border = torch.full((1, 1, 20, 20), float("-inf"))
    for start, end in ((0, 8), (8, 20)):
        border[..., start:end, start:end] = torch.full((end - start, end - start), float("-inf")).triu(1)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    with apply_gates(model, anatomy, together, mlp_placement=placement, in_training=in_training):
        states = model.get_submodule("model")(tokens, attention_mask=border, position_ids=positions).last_hidden_state
    torch.testing.assert_close(states, torch.cat(alone, 1), atol=1e-5, rtol=1e-4)
    states.square().sum().backward()
    for name in ("kv_groups", "ffn"):
        for i, value in enumerate(getattr(together, name)):
            expected = torch.stack([getattr(gates, name)[i].grad for gates in rows])
            torch.testing.assert_close(value.grad, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(together.hidden.grad, torch.stack([gates.hidden.grad for gates in rows]), atol=1e-4, rtol=1e-3)
