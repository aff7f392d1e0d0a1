"""What the table says that methods remove, against the masks that they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunebench.experiments.checks.removals import ALL_KINDS, Kind, removed_kinds
from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Run
from prunebench.methods.registry import PRUNERS, get_pruner
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.tiny import random_tokens, tiny_model

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in PRUNERS.built_in if name != "slicegpt"),  # which prunes nothing
    ("llm_pruner", {"strategy": "channel"}),
    ("llm_pruner", {"strategy": "layer"}),
    ("block_influence", {"unit": "sublayers"}),
    ("flap", {"compensate": False}),
    ("compresso", {"hidden_gates": False, "query_head_gates": True}),
    ("compresso", {"head_gates": False, "channel_gates": False}),
    ("nuteprune", {"hidden_gates": False}),
]


def kinds_in(dense: Anatomy, after: Anatomy, masks: Any) -> set[Kind]:
    """What is gone by `masks`, and what a method added to the model."""
    found = set()
    for layer in dense.layers:
        i = layer.index
        if masks.attn[i] and not masks.q_heads[i].all():
            found.add(Kind.HEADS)
        if masks.mlp[i] and not masks.ffn[i].all():
            found.add(Kind.CHANNELS)
        if not (masks.attn[i] and masks.mlp[i]):
            found.add(Kind.SUBLAYERS)
    if not masks.hidden.all():
        found.add(Kind.WIDTH)
    if any(layer.mlp and layer.mlp.out_bias for layer in after.layers):
        found.add(Kind.BIASES)
    return found


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_a_built_in_method_removes_nothing_but_what_the_table_says(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    pruner = get_pruner(name)
    config = type(pruner.quick_config()).model_validate({**pruner.quick_config().model_dump(), **changes})
    said = removed_kinds(name, config.model_dump(mode="json"))
    found: set[Kind] = set()
    for sparsity in (0.25, 0.5):
        model = tiny_model("llama")
        dense = Anatomy.from_model(model)
        run = Run(seed=0, device=torch.device("cpu"), folder=tmp_path / str(sparsity))
        run.folder.mkdir()
        masks = pruner(config).prune(model, Budget(sparsity, "blocks"), PruningData(random_tokens(8, 32, seed=1), "random tokens"), run)
        found |= kinds_in(dense, Anatomy.from_model(model), masks)
    assert found <= said
    assert bool(found) == bool(said), "the table names something where the method removes nothing, or the other way round"


@pytest.mark.parametrize(("name", "settings"), [("somebodys", {}), ("magnitude", {"allocation": "somebodys"})])
def test_what_is_not_built_in_may_remove_anything(name: str, settings: dict[str, Any]) -> None:
    assert removed_kinds(name, settings) == ALL_KINDS == frozenset(Kind)
