"""What the tests of every method that learns its masks do with a learner."""

import torch

from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_tokens


def move_adapters(learner):
    """Away from their start, at which they change nothing."""
    with torch.no_grad():
        for parameter in learner.adapters.parameters.values():
            parameter.add_(0.1)


def assert_sliced_is_trained(learner):
    """Adapters and decided gates in the forward pass equal the merged, folded and sliced model."""
    model = learner.model
    move_adapters(learner)
    with torch.no_grad():
        for parameter in learner.gates.log_alpha.values():
            parameter.copy_(torch.randn(parameter.shape, generator=learner.generator) * 2)
        learner.gates.as_gates(learner.harden().values, learner.live)
        trained = model(random_tokens()).logits
        masks = learner.finish()
        sliced = slice_model(model, masks)(random_tokens()).logits
    assert float((sliced - trained).abs().max()) < 1e-4 * float(trained.abs().max())
