"""The gates of training have the values and gradients of the plain ones, in every family, in less memory."""

import pytest
import torch

from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.gated_products import learning_input, learning_output, learning_product
from prunebench.models.gating.soft_masks import Gates, apply_gates
from prunebench.models.tiny import FAMILIES, random_tokens, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_no_value_and_no_gradient(family):
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


@pytest.mark.parametrize("undecided", [1, 6, 20])  # of 32 or 48: both picked out, the channels alone, neither
@pytest.mark.parametrize("placement", ["product", "branches"])
def test_decided_gates_alone_may_get_no_gradient(placement, undecided):
    """Through a hard-concrete draw of 0 or 1 there is none; the other gates, the weights and the values must not notice."""
    draw = torch.Generator().manual_seed(0)
    starts = [torch.ones(48) for _ in range(3)] + [torch.ones(32)]
    for start in starts:
        places = torch.randperm(len(start), generator=draw)
        start[places[:2]] = 0
        start[places[2 : 2 + undecided]] = torch.rand(undecided, generator=draw)
        start[places[2]] = 1e-6
    found = []
    for in_training in (False, True):
        model = tiny_model("llama")
        gates = [start.clone().requires_grad_() for start in starts]
        applied = Gates(ffn=gates[:3], hidden=gates[3])
        with apply_gates(model, Anatomy.from_model(model), applied, mlp_placement=placement, in_training=in_training):
            loss = model(random_tokens(), labels=random_tokens(seed=1)).loss
        loss.backward()
        learnt = [torch.where((gate > 0) & (gate < 1), gate.grad, 0) for gate in gates]
        found.append([loss.detach(), *learnt, *(p.grad for p in model.parameters())])
        if in_training:
            assert all((gate.grad == 0)[gate == 0].all() for gate in gates)
    for plain, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("function", [learning_input, learning_output, learning_product])
def test_float16_keeps_the_small_gradients_of_small_gates(function):
    """What such a gate gives times its gradient is below the smallest number of that format."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(1, 4, 8, generator=draw).half().requires_grad_() for _ in range(2))
    gate = torch.full((8,), 1e-3, requires_grad=True)
    function(left * right, gate, None).backward(torch.full((1, 4, 8), 1e-5).half())
    expected = (left * right).detach().float().sum((0, 1)) * 1e-5
    torch.testing.assert_close(gate.grad, expected, atol=1e-6, rtol=0.02)


def test_of_outputs_only_what_undecided_gates_give_is_kept():
    x, gate = torch.randn(1, 10, 32, requires_grad=True), torch.ones(32)
    gate[3] = 0.5
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor):
        learning_output(x * 1, gate.requires_grad_(), None)
    assert (10, 1) in kept
    assert (1, 10, 32) not in kept
