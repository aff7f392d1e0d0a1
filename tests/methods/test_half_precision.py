"""Methods on half-precision models: statistics and scores are taken in float32 or more."""

from __future__ import annotations

import pytest
import torch

from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Run
from prunebench.methods.registry import get_pruner
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_tokens, tiny_model

METHODS = {
    "llm_pruner": {"importance": "mix"},
    "wanda_sp": {},
    "flap": {},
    "block_influence": {},
    "wanda": {},
    "sparsegpt": {},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_half_precision_model_is_pruned_in_its_own_dtype(name, dtype, tmp_path):
    model = tiny_model("llama").to(dtype)
    dense = Anatomy.from_model(model).dense_params
    pruner = get_pruner(name)
    run = Run(seed=0, device=torch.device("cpu"), folder=tmp_path)
    budget = Budget(0.3, "blocks")
    masks = pruner(pruner.Config(**METHODS[name])).prune(model, budget, PruningData(random_tokens(4, 16), "random"), run)
    sliced = slice_model(model, masks)
    assert {parameter.dtype for parameter in sliced.parameters()} == {dtype}
    with torch.no_grad():
        assert torch.isfinite(sliced(random_tokens()).logits).all()
    if pruner.structured:
        budget.check(dense, masks.count(Anatomy.from_model(model)))


def test_activations_that_overflow_when_squared_in_float16_still_rank(tmp_path):
    model = tiny_model("llama").half()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(60)  # inputs of the down projection reach hundreds
    pruner = get_pruner("flap")
    run = Run(seed=0, device=torch.device("cpu"), folder=tmp_path)
    pruner().prune(model, Budget(0.3, "blocks"), PruningData(random_tokens(4, 16), "random"), run)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
