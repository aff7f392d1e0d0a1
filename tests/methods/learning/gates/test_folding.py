"""Folded weights compute what the gates computed, and sliced ones what the folded ones do: every family, soft and hard."""

import pytest
import torch

from prunebench.methods.learning.gates.folding import fold_gates
from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.soft_masks import Gates, apply_gates, apply_masks
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks, random_tokens, tiny_model


def soft_gates(anatomy, masks, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def soften(mask):
        return mask * (0.3 + 0.7 * torch.rand(mask.shape, generator=draw))

    groups, queries, ffn = ([soften(m) for m in kind] for kind in (masks.kv_groups, masks.q_heads, masks.ffn))
    return Gates(kv_groups=groups, q_heads=queries, ffn=ffn, hidden=soften(masks.hidden))


@pytest.mark.parametrize("placement", ["product", "branches"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gated_folded_and_sliced_models_agree(family, placement):
    model = tiny_model(family)
    anatomy = Anatomy.from_model(model)
    masks = random_masks(anatomy, seed=3, hidden=True)
    gates = soft_gates(anatomy, masks)
    tokens = random_tokens()
    with torch.no_grad():
        with apply_gates(model, anatomy, gates, mlp_placement=placement):
            gated = model(tokens).logits
        fold_gates(model, anatomy, gates, placement)
        with apply_masks(model, anatomy, masks):
            folded = model(tokens).logits
        sliced = slice_model(model, masks)(tokens).logits
    scale = float(gated.abs().max())
    assert float((folded - gated).abs().max()) < 1e-4 * scale
    assert float((sliced - gated).abs().max()) < 1e-4 * scale


def test_without_the_norm_rule_a_tied_soft_model_would_differ():
    """The same gates, with the final norm's compensation undone, give other logits: the rule does the work."""
    model = tiny_model("llama_tied")
    anatomy = Anatomy.from_model(model)
    masks = random_masks(anatomy, seed=3, hidden=True)
    gates = soft_gates(anatomy, masks)
    tokens = random_tokens()
    with torch.no_grad():
        with apply_gates(model, anatomy, gates):
            gated = model(tokens).logits
        before = model.model.norm.weight.clone()
        fold_gates(model, anatomy, gates)
        model.model.norm.weight.copy_(before)
        assert float((slice_model(model, masks)(tokens).logits - gated).abs().max()) > 0.05 * float(gated.abs().max())
