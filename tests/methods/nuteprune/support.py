"""A tiny model that is taught, and whole runs of NutePrune on it."""

from prunebench.methods.data import PruningData
from prunebench.methods.nuteprune.pruner import NutePrune
from prunebench.methods.nuteprune.teaching import TaughtLearner
from prunebench.methods.pruner import Run
from prunebench.models.tiny import random_tokens, tiny_model
from tests.methods.learners import BUDGET, CPU, learner_of


def taught(model, folder, *, text=None, later=None, **changes):
    """A learner whose epochs have one step; twenty of them prune."""
    settings = {"lora_projections": ("q", "v", "down"), "lora_alpha": 2.0, "pruning_epochs": 20.0, "ramp_epochs": 10.0, "mask_lr": 0.1}
    config = NutePrune.quick_config().model_copy(update={**settings, "gap": 10, "spacing": 0.01, **changes})
    return learner_of(model, config, text=text, later=later, folder=folder, kind=TaughtLearner)


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
