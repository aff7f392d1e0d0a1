"""Channels whose gate is exactly 0 are left out of training's products: same values, same gradients, smaller products."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.open_channels import OpenChannels
from prunebench.models.gating.soft_masks import Gates, apply_gates
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks, random_tokens, tiny_model

WIDTH = 48  # whose steps are of 3 channels


def gates_with_zeros(anatomy, parts=None):
    """Gates of which 33 channels of 48 are 0, in the first of several parts four more."""
    draw = torch.Generator().manual_seed(0)
    rows = () if parts is None else (len(parts),)
    ffn = [torch.rand(*rows, WIDTH, generator=draw) for _ in anatomy.layers]
    for gate in ffn:
        gate[..., :24] = 0
        gate[..., torch.randperm(24, generator=draw)[:9] + 24] = 0
        if parts is not None:
            gate[0, 24:28] = 0
    return Gates(ffn=[gate.requires_grad_() for gate in ffn], parts=parts)


def with_adapters(model, anatomy, rank=4):
    """Frozen weights and LoRA that does something on every projection of the MLPs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = [path for layer in anatomy.layers for path in {layer.mlp.gate.module, layer.mlp.up.module, layer.mlp.down}]
        get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    return model


def outcome(model, anatomy, gates, placement, in_training):
    """Logits of a teacher's pass and of a student's, and every gradient."""
    with apply_gates(model, anatomy, gates, mlp_placement=placement, in_training=in_training):
        with torch.no_grad():
            taught = model(random_tokens()).logits
        logits = model(random_tokens()).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), random_tokens(seed=1).flatten()).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return taught, logits.detach(), trained, [gate.grad for gate in gates.ffn]


@pytest.mark.parametrize("adapters", [True, False], ids=["lora", "all weights trained"])
@pytest.mark.parametrize("placement", ["product", "branches"])
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_channels_change_no_value_and_no_other_gradient(family, placement, adapters):
    found = []
    for in_training in (False, True):
        model = tiny_model(family)
        anatomy = Anatomy.from_model(model)
        if adapters:
            with_adapters(model, anatomy)
        found.append(outcome(model, anatomy, gates_with_zeros(anatomy), placement, in_training))
    (taught, logits, trained, of_gates), (lean_taught, lean_logits, lean_trained, of_lean_gates) = found
    torch.testing.assert_close(lean_taught, taught, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lean_logits, logits, atol=1e-5, rtol=1e-4)
    assert trained
    for name, gradient in trained.items():
        torch.testing.assert_close(lean_trained[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    for gate, plain, lean in zip(gates_with_zeros(anatomy).ffn, of_gates, of_lean_gates, strict=True):
        torch.testing.assert_close(lean[gate != 0], plain[gate != 0], atol=1e-5, rtol=1e-3)
        assert (lean[gate == 0] == 0).all()
        assert placement == "branches" or (plain[gate == 0] != 0).any()


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_channel_that_is_open_in_one_part_takes_part_in_all(family):
    found = []
    for in_training in (False, True):
        model = with_adapters(tiny_model(family), Anatomy.from_model(tiny_model(family)))
        anatomy = Anatomy.from_model(tiny_model(family))
        gates = gates_with_zeros(anatomy, parts=(5, 7))
        with apply_gates(model, anatomy, gates, in_training=in_training):
            logits = model(random_tokens(1, 12)).logits
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain, atol=1e-3, rtol=1e-3)


def products_of(model, anatomy, gates, index=1):
    """Inputs of a down projection's base layer: as wide as the product that it computes."""
    widths = []
    down = model.get_submodule(anatomy.layers[index].mlp.down)
    handle = getattr(down, "base_layer", down).register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[-1]))
    with apply_gates(model, anatomy, gates, in_training=True), torch.no_grad():
        model(random_tokens())
    handle.remove()
    return widths.pop()


@pytest.mark.parametrize(("closed", "computed"), [(0, 48), (2, 48), (3, 45), (16, 33), (47, 3), (48, 3)])
def test_products_shrink_in_steps_and_never_to_nothing(closed, computed):
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    ffn = [torch.ones(WIDTH) for _ in anatomy.layers]
    ffn[1][torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))[:closed]] = 0
    assert products_of(model, anatomy, Gates(ffn=ffn)) == computed
    assert products_of(model, anatomy, Gates(ffn=ffn), index=0) == WIDTH


def test_real_widths_shrink_by_multiples_of_eight():
    for width, step in ((1536, 96), (11008, 688), (8960, 560), (14336, 896), (5632, 352), (100, 7), (1000, 64)):
        gate = torch.ones(width)
        gate[: step + 1] = 0
        assert len(OpenChannels(lambda gate=gate: [gate]).of(0)) == width - step
        gate[step - 1 :] = 1
        assert OpenChannels(lambda gate=gate: [gate]).of(0) is None


def test_gates_are_looked_through_again_when_they_are_drawn_anew():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    draws = []
    for first in (0, 1):
        draws.append(torch.ones(WIDTH))
        draws[-1][first::2] = 0
    gates = Gates()
    with apply_gates(model, anatomy, gates, in_training=True), torch.no_grad():
        found = []
        for draw in [*draws, None]:
            gates.ffn = None if draw is None else [draw] * len(anatomy.layers)
            found.append(model(random_tokens()).logits)
    assert torch.equal(found[2], model(random_tokens()).logits)
    for draw, logits in zip(draws, found, strict=False):
        with apply_gates(model, anatomy, Gates(ffn=[draw] * len(anatomy.layers))), torch.no_grad():
            torch.testing.assert_close(logits, model(random_tokens()).logits, atol=1e-5, rtol=1e-4)


def test_gates_changed_in_place_are_looked_through_again():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    draw = torch.ones(WIDTH)
    with apply_gates(model, anatomy, Gates(ffn=[draw] * len(anatomy.layers)), in_training=True), torch.no_grad():
        draw[::2] = 0
        model(random_tokens())
        draw.fill_(1)
        opened = model(random_tokens()).logits
    torch.testing.assert_close(opened, model(random_tokens()).logits, atol=1e-5, rtol=1e-4)


def test_a_layer_whose_mlp_is_gone_has_no_channels_to_leave_out():
    model = tiny_model("llama")
    sliced = slice_model(model, random_masks(Anatomy.from_model(model), sublayers=True))
    anatomy = Anatomy.from_model(sliced)
    assert not all(layer.mlp for layer in anatomy.layers)
    gates = Gates.from_masks(random_masks(anatomy, seed=3), dtype=torch.float32, device="cpu")
    found = []
    for in_training in (False, True):
        with apply_gates(sliced, anatomy, gates, in_training=in_training), torch.no_grad():
            found.append(sliced(random_tokens()).logits)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_the_frozen_weights_that_are_chosen_are_not_kept_for_the_backward_pass():
    model = tiny_model("llama").requires_grad_(False)
    anatomy = Anatomy.from_model(model)
    gates = gates_with_zeros(anatomy)
    weights = {p.data_ptr() for p in model.parameters()}
    kept = []

    def note(tensor):
        if tensor.dim() == 2 and tensor.data_ptr() not in weights and 32 in tensor.shape and tensor.is_floating_point():
            kept.append(tuple(tensor.shape))
        return tensor

    with apply_gates(model, anatomy, gates, in_training=True), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(random_tokens()).logits.sum().backward()
    assert not [shape for shape in kept if min(shape) < 32], kept


def test_removal_leaves_no_trace_and_a_foreign_forward_is_left_alone():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    gates = gates_with_zeros(anatomy)
    plain = model(random_tokens()).logits
    with apply_gates(model, anatomy, gates, in_training=True):
        assert not torch.equal(model(random_tokens()).logits, plain)
    assert torch.equal(model(random_tokens()).logits, plain)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]

    up = model.get_submodule(anatomy.layers[1].mlp.up.module)
    calls, own = [], up.forward
    up.forward = lambda x: (calls.append(x.shape), own(x))[1]
    with apply_gates(model, anatomy, gates), torch.no_grad():
        expected = model(random_tokens()).logits
    with apply_gates(model, anatomy, gates, in_training=True), torch.no_grad():
        torch.testing.assert_close(model(random_tokens()).logits, expected, atol=1e-5, rtol=1e-4)
    assert len(calls) == 2
    assert "forward" in vars(up)


@pytest.mark.parametrize("dtype", ["autocast", "bfloat16"])
def test_bfloat16(dtype):
    """Products under autocast and of a bfloat16 model: gradients of the weights' dtypes and near those of the plain gates."""
    found = []
    for in_training in (False, True):
        model = tiny_model("llama_bias")
        anatomy = Anatomy.from_model(model)
        with_adapters(model, anatomy)
        if dtype == "bfloat16":
            model = model.to(torch.bfloat16)
        with (
            apply_gates(model, anatomy, gates_with_zeros(anatomy), in_training=in_training),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"),
        ):
            loss = model(random_tokens(), labels=random_tokens(seed=1)).loss
        loss.backward()
        found.append(torch.cat([p.grad.flatten().float() for p in model.parameters() if p.requires_grad]))
    plain, lean = found
    assert torch.nn.functional.cosine_similarity(plain, lean, dim=0) > 0.999
    assert abs(lean.norm() / plain.norm() - 1) < 0.01
