"""The memory-saving gate product has the gradients of the plain one, in every family."""

import pytest
import torch

from models.anatomy import Anatomy
from models.soft_masks import Gates, apply_gates
from models.tiny import FAMILIES, random_tokens, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_factors_changes_no_gradient(family):
    found = []
    for keeps_factors in (False, True):
        model = tiny_model(family)
        anatomy = Anatomy.from_model(model)
        draw = torch.Generator().manual_seed(0)
        ffn = [torch.rand(48, generator=draw).requires_grad_() for _ in anatomy.layers]
        hidden = torch.rand(32, generator=draw).requires_grad_()
        with apply_gates(model, anatomy, Gates(ffn=ffn, hidden=hidden), keeps_factors=keeps_factors):
            loss = model(random_tokens(), labels=random_tokens(seed=1)).loss
        loss.backward()
        found.append([loss.detach(), hidden.grad, *(gate.grad for gate in ffn), *(p.grad for p in model.parameters())])
    for plain, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain, atol=1e-6, rtol=1e-4)


def test_the_gated_activation_is_not_kept():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    kept = {}
    for keeps_factors in (False, True):
        shapes = []

        def note(tensor, shapes=shapes):
            shapes.append((tuple(tensor.shape), tensor.data_ptr()))
            return tensor

        gates = Gates(ffn=[torch.rand(48).requires_grad_() for _ in anatomy.layers], hidden=torch.rand(32).requires_grad_())
        with (
            apply_gates(model, anatomy, gates, keeps_factors=keeps_factors),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            model(random_tokens())
        kept[keeps_factors] = len({place for shape, place in shapes if shape[-1] == 48 and len(shape) == 3})
    assert kept[True] == kept[False] - len(anatomy.layers)
