"""What the tests of every method that learns its masks do with a learner."""

from pathlib import Path

import torch

from prunebench.methods.data import Example, TrainingText
from prunebench.methods.learning.run.learner import MaskLearner
from prunebench.methods.pruner import Run
from prunebench.models.budget import Budget
from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_tokens

CPU = torch.device("cpu")
BUDGET = Budget(0.35, "blocks")
EXAMPLES = tuple(Example(row, 0) for row in random_tokens(8, 32, seed=1))


def text_of(examples, validation=()):
    return TrainingText(tuple(examples), tuple(validation), "made for a test")


def learner_of(model, config, *, text=None, budget=BUDGET, seed=0, folder=Path(), kind=MaskLearner, **options):
    """A learner on random tokens; `folder` matters where something is kept."""
    return kind(model, config, budget, text or text_of(EXAMPLES), Run(seed=seed, device=CPU, folder=folder), **options)


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
