"""The example of docs/training-methods.md is a whole method: its loss is heard, and its masks meet the budget."""

from pathlib import Path

import torch

from prunebench.methods import registry
from prunebench.methods.data import PruningData, TrainingConfig
from prunebench.methods.pruner import Run
from prunebench.methods.registry import get_pruner, load_plugin
from prunebench.models.anatomy import Anatomy
from prunebench.models.tiny import random_tokens, tiny_model
from tests.methods.learners import BUDGET

PAGE = Path(__file__).resolve().parents[3] / "docs/training-methods.md"


def test_the_method_of_the_docs_learns_by_its_own_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.PRUNERS, "registered", dict(registry.PRUNERS.registered))
    (tmp_path / "sure.py").write_text(PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0])
    assert load_plugin(tmp_path / "sure.py") == ["sure"]
    sure = get_pruner("sure")
    losses = []
    for i, weight in enumerate((0.0, 2.0)):
        settings = {"text": TrainingConfig(source="calibration"), "batch_tokens": 64, "steps_per_epoch": 1, "mask_lr": 1.0, "lora_rank": 2}
        pruner = sure(sure.Config(**settings, entropy_weight=weight))
        assert pruner.training_tokens() == 10 * 64
        curves, model = [], tiny_model("llama")
        folder = tmp_path / str(i)
        run = Run(seed=0, device=torch.device("cpu"), folder=folder, log_metrics=lambda step, values, to=curves: to.append(values))
        masks = pruner.prune(model, BUDGET, PruningData(random_tokens(8, 32, seed=1), "random tokens"), run)
        BUDGET.check(Anatomy.from_model(model).dense_params, masks.count(Anatomy.from_model(model)))
        losses.append(curves[0]["lm_loss"])
    assert losses[1] > losses[0] + 1
