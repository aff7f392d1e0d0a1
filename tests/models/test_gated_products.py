"""The gates of training have the values and gradients of the plain ones, in every family, in less memory."""

import pytest
import torch

from models import soft_masks
from models.anatomy import Anatomy
from models.soft_masks import Gates, apply_gates
from models.tiny import FAMILIES, random_tokens, tiny_model


@pytest.mark.parametrize("piece_bytes", [800, 1 << 19])  # of 4 tokens, and of all at once
@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_no_value_and_no_gradient(family, piece_bytes, monkeypatch):
    monkeypatch.setattr(soft_masks, "PIECE_BYTES", piece_bytes)
    found = []
    for in_training in (False, True):
        model = tiny_model(family)
        anatomy = Anatomy.from_model(model)
        draw = torch.Generator().manual_seed(0)
        ffn = [torch.rand(48, generator=draw).requires_grad_() for _ in anatomy.layers]
        kv_groups = [torch.rand(anatomy.layer_sizes(i)[1], generator=draw).requires_grad_() for i in range(len(anatomy.layers))]
        hidden = torch.rand(32, generator=draw).requires_grad_()
        with apply_gates(model, anatomy, Gates(kv_groups=kv_groups, ffn=ffn, hidden=hidden), in_training=in_training):
            with torch.no_grad():
                logits = model(random_tokens()).logits
            loss = model(random_tokens(), labels=random_tokens(seed=1)).loss
        loss.backward()
        of_gates = [hidden.grad, *(gate.grad for gate in (*kv_groups, *ffn))]
        found.append([logits, loss.detach(), *of_gates, *(p.grad for p in model.parameters())])
    for plain, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain, atol=1e-6, rtol=1e-4)


def test_the_gated_activation_is_not_kept():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    kept = {}
    for in_training in (False, True):
        shapes = []

        def note(tensor, shapes=shapes):
            shapes.append((tuple(tensor.shape), tensor.data_ptr()))
            return tensor

        gates = Gates(ffn=[torch.rand(48).requires_grad_() for _ in anatomy.layers], hidden=torch.rand(32).requires_grad_())
        with (
            apply_gates(model, anatomy, gates, in_training=in_training),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            model(random_tokens())
        kept[in_training] = len({place for shape, place in shapes if shape[-1] == 48 and len(shape) == 3})
    assert kept[True] == kept[False] - len(anatomy.layers)
