"""Training with matrix products in bfloat16: everything that is kept stays float32, and the gradients are nearly the same."""

import pytest
import torch

from methods.calibration.training_text import Example
from methods.training.gates import GateKinds
from methods.training.learner import LearnerSettings, MaskLearner
from methods.training.packing import lm_loss
from methods.training.precision import computing_in
from methods.training.stages import LearnMasks
from models.budget import Budget
from models.tiny import random_tokens, tiny_model

CPU = torch.device("cpu")
EXAMPLES = [Example(row, 0) for row in random_tokens(8, 32, seed=1)]


def learner_of(model, dtype):
    settings = LearnerSettings(4, 4, ("q", "v"), GateKinds(), 2 / 3, "product", "soft", 128, compute_dtype=dtype)
    return MaskLearner(model, settings, Budget(0.3, "blocks"), EXAMPLES, 0, CPU)


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
        stage = LearnMasks(
            learner,
            lambda pack: lm_loss(model, pack),
            warmup_steps=0,
            pruning_steps=4,
            ramp_steps=2,
            ramp="linear",
            lora_lr=1e-3,
            mask_lr=0.1,
            multiplier_lr=0.1,
        )
        stage.enter()
        stage.step(0)
        assert {p.dtype for p in [*model.parameters(), *learner.lora_parameters, *learner.gates.log_alpha.values()]} == {torch.float32}
