"""Training with matrix products in bfloat16: everything that is kept stays float32, and the gradients are nearly the same."""

from contextlib import suppress

import pytest
import torch

from prunebench.methods.learning.config import LearningConfig
from prunebench.methods.learning.run.stages import LearnMasks
from prunebench.methods.learning.text.packing import lm_loss
from prunebench.methods.learning.text.precision import computing_in, frozen_weights_in
from prunebench.models.budget import Budget
from prunebench.models.tiny import random_tokens, tiny_model
from tests.methods import learners
from tests.methods.learners import CPU, move_adapters


def learner_of(model, dtype, **options):
    config = LearningConfig(lora_rank=4, lora_alpha=4, batch_tokens=128, steps_per_epoch=1, compute_dtype=dtype, lora_lr=1e-3)
    return learners.learner_of(model, config, budget=Budget(0.3, "blocks"), **options)


def gradients(dtype):
    model = tiny_model("llama", hidden_size=128, intermediate_size=256)
    with learner_of(model, dtype) as learner:
        with torch.no_grad():
            for name, parameter in learner.adapters.parameters.items():
                if ".lora_B." in name:
                    parameter.normal_(std=0.05, generator=learner.generator)
        pack = learner.next_pack()
        learner.draw_gates(pack)
        with computing_in(dtype, CPU):
            loss = lm_loss(model, pack)
        loss.backward()
        assert loss.dtype == torch.float32
        parts = {"gates": learner.gates.log_alpha.values(), "lora": learner.lora_parameters}
        return {name: torch.cat([p.grad.flatten() for p in parameters]) for name, parameters in parts.items()}


@pytest.mark.parametrize("part", ["gates", "lora"])
def test_gradients_point_the_same_way(part):
    exact, rounded = gradients("model")[part], gradients("bfloat16")[part]
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert not torch.equal(exact, rounded)


def test_a_step_leaves_every_dtype_as_it_was():
    model = tiny_model("llama")
    with learner_of(model, "bfloat16") as learner:
        stage = LearnMasks(learner)
        stage.enter()
        stage.step(0)
        assert {p.dtype for p in [*learner.lora_parameters, *learner.gates.log_alpha.values()]} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["llama_tied", "gemma2", "phi3"])
def test_weights_held_in_bfloat16_change_no_bit_of_a_pass_and_come_back(family):
    model = tiny_model(family).requires_grad_(False)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    before = dict(model.named_parameters(remove_duplicate=False))

    def outcome():
        embedding.grad = None
        with computing_in("bfloat16", CPU):
            logits = model(random_tokens()).logits
        logits.float().square().sum().backward()
        return logits.detach(), embedding.grad

    expected = outcome()
    with suppress(KeyboardInterrupt), frozen_weights_in("bfloat16", model):
        held = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
        assert {weight.dtype for weight in held if not weight.requires_grad} == {torch.bfloat16}
        for found, plain in zip(outcome(), expected, strict=True):
            assert torch.equal(found, plain)
        raise KeyboardInterrupt
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
    with frozen_weights_in("model", model):
        assert all(module.weight.dtype == torch.float32 for module in model.modules() if isinstance(module, torch.nn.Linear))


def test_adapters_are_merged_into_the_weights_as_they_were():
    model = tiny_model("llama")
    path = "model.layers.1.self_attn.q_proj"
    plain = model.get_submodule(path).weight.detach().clone()
    with learner_of(model, "bfloat16") as learner:
        move_adapters(learner)
        found = learner.adapters.tensors()
        name = next(name for name in found if name.startswith(path) and ".lora_A." in name)
        added = found[name.replace("lora_A", "lora_B")] @ found[name]
        learner.finish()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(model.get_submodule(path).weight, plain + added, atol=1e-6, rtol=0)


def test_a_learner_that_cannot_begin_leaves_the_model_as_it_was(monkeypatch):
    model = tiny_model("llama_tied")
    before = dict(model.named_parameters(remove_duplicate=False))
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    learner = learner_of(model, "bfloat16", gradient_checkpointing=True)
    with pytest.raises(ValueError, match="checkpointing"):
        learner.__enter__()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is parameter and parameter.requires_grad for name, parameter in before.items())


def test_gradient_checkpointing_leaves_no_hook():
    model = tiny_model("llama")
    with learner_of(model, "model", gradient_checkpointing=True):
        pass
    assert not [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
