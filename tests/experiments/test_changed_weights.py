"""Weights that a method changed are stored once, tied ones too, and come back as they were."""

import torch
from safetensors.torch import load_file, save_file

from prunebench.experiments.stages import changed_weights, weight_hashes
from prunebench.models.anatomy import Anatomy
from prunebench.models.output_bias import load_changed_weights
from prunebench.models.tiny import tiny_model


def test_a_changed_tied_embedding_is_stored_once_and_restored(tmp_path):
    model = tiny_model("llama_tied")
    before = weight_hashes(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.5)
    changed = changed_weights(model, before, frozenset(), "test")
    assert len(changed) == 1
    save_file(changed, tmp_path / "weights.safetensors")
    fresh = tiny_model("llama_tied")
    load_changed_weights(fresh, Anatomy.from_model(fresh), load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(fresh.lm_head.weight, model.lm_head.weight)
    assert torch.equal(fresh.model.embed_tokens.weight, model.model.embed_tokens.weight)
