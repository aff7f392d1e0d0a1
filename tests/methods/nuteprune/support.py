"""A tiny model that is taught, and whole runs of NutePrune on it."""

import torch

from prunebench.methods.calibration.training_text import Example
from prunebench.methods.data import PruningData
from prunebench.methods.learning.gates.gates import GateKinds
from prunebench.methods.learning.run.learner import LearnerSettings
from prunebench.methods.nuteprune.pruner import NutePrune
from prunebench.methods.nuteprune.snapshots import SnapshotManager
from prunebench.methods.nuteprune.teaching import Distill, TaughtLearner
from prunebench.methods.pruner import Run
from prunebench.models.budget import Budget
from prunebench.models.tiny import random_tokens, tiny_model

BUDGET = Budget(0.35, "blocks")
CPU = torch.device("cpu")


def taught(model, folder, **kinds):
    settings = LearnerSettings(2, 2, ("q", "v", "down"), GateKinds(**kinds), 2 / 3, "product", "soft", 64)
    examples = [Example(row, 0) for row in random_tokens(8, 32, seed=1)]
    learner = TaughtLearner(model, settings, BUDGET, examples, 0, CPU)
    learner.teachers = SnapshotManager(folder, "run", BUDGET.sparsity)
    return learner


def distilling(learner, **changes):
    options = {
        "distils": True,
        "kl_weight": 0.1,
        "layer_weight": 0.9,
        "lm_weight": 0.0,
        "kl_temperature": 2 / 3,
        "kl_reduction": "sequence",
        "layer_scale": "absolute",
        "mask_only_steps": 0,
        "pruning_steps": 20,
        "ramp_steps": 10,
        "ramp": "linear",
        "lora_lr": 1e-3,
        "mask_lr": 0.1,
        "multiplier_lr": 0.1,
    }
    return Distill(learner, **(options | changes))


def prune(folder, *, on_step=None, seed=0, model=None, **changes):
    curves = []

    def log(step, values):
        curves.append((step, values))
        if on_step is not None:
            on_step(step)

    model = model if model is not None else tiny_model("llama")
    run = Run(seed=seed, device=CPU, folder=folder, log_metrics=log)
    data = PruningData(random_tokens(8, 32, seed=1), "random tokens")
    settings = {"steps_per_epoch": 4, "mask_lr": 0.6, "multiplier_lr": 0.6, "checkpoint_every": 5} | changes
    config = NutePrune.quick_config().model_copy(update=settings)
    return NutePrune(config).prune(model, BUDGET, data, run), model, curves


def distilled(curves):
    """What was logged of the pruning steps."""
    return [values for _, values in curves if "teacher_sparsity" in values]
