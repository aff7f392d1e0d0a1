"""The one LoRA recovery that every method gets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from prunebench.methods.data import Example, PruningData, TrainingConfig
from prunebench.methods.data.sources import alpaca_prompt
from prunebench.methods.learning.run.loop import TrainingDiverged
from prunebench.methods.learning.text.packing import lm_loss
from prunebench.methods.pruner import Run
from prunebench.methods.recovery.batches import BatchPlan, packed
from prunebench.methods.recovery.lora import LoraRecoveryConfig, recover_lora
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import BadInput
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks, tiny_model

ROWS = [{"instruction": f"say w{i % 20}", "input": "", "output": " ".join(f"w{(i + j) % 20}" for j in range(3 + i % 5))} for i in range(60)]
SMALL = {"text": TrainingConfig(source="alpaca", max_len=64), "batch_size": 8, "pack_tokens": 128, "learning_rate": 0.01, "rank": 4}


class Killed(Exception):
    """Stands for a kill at a safe point."""


@pytest.fixture
def data(tmp_path, word_tokenizer):
    (tmp_path / "data/calibration").mkdir(parents=True)
    (tmp_path / "data/calibration/alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "data/piqa").mkdir()
    (tmp_path / "data/piqa/validation.jsonl").write_text(json.dumps({"goal": "g", "sol1": "s"}) + "\n")
    tokenizer = word_tokenizer([alpaca_prompt("say"), *(f"w{i}" for i in range(20))])
    assert len(tokenizer) < 128  # the tiny models' vocabulary
    return PruningData(torch.empty(0, 0, dtype=torch.int64), "none", tokenizer, 3, tmp_path / "data")


def pruned_model(family="llama"):
    model = tiny_model(family)
    return slice_model(model, random_masks(Anatomy.from_model(model), sublayers=True))


def recover(model, data, folder, *, progress=None, log=None, **config):
    Path(folder).mkdir(exist_ok=True)
    options = {"progress": progress} if progress else {}
    options |= {"log_metrics": log} if log else {}
    run = Run(seed=0, device=torch.device("cpu"), folder=Path(folder), **options)
    return recover_lora(model, LoraRecoveryConfig(**(SMALL | config)), data, run)


@torch.no_grad()
def validation_loss(model, data):
    packs = packed(data.training_text(SMALL["text"]).validation, 128)
    labels = sum(len(pack.targets) for pack in packs)
    return sum(float(lm_loss(model, pack)) * len(pack.targets) / labels for pack in packs)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_recovery_lowers_the_validation_loss_and_leaves_a_plain_model(data, tmp_path):
    model = pruned_model()
    before, names = weights(model), [name for name, _ in model.named_modules()]
    result = recover(model, data, tmp_path / "run", token_budget=8000)
    assert result.validation_after < 0.8 * result.validation_before
    assert [name for name, _ in model.named_modules()] == names
    assert {name: tensor.shape for name, tensor in weights(model).items()} == {name: tensor.shape for name, tensor in before.items()}
    changed = {re.sub(r".*\.(\w+)\.\w+$", r"\1", name) for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert validation_loss(model, data) == pytest.approx(result.validation_after, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_recovered_after_slicing(family, data, tmp_path):
    result = recover(pruned_model(family), data, tmp_path / "run", token_budget=2000)
    assert result.validation_after <= result.validation_before


def test_lora_starts_at_no_effect(data, tmp_path):
    model = pruned_model()
    before, loss = weights(model), validation_loss(model, data)
    result = recover(model, data, tmp_path / "run", token_budget=300, learning_rate=1e-30)
    assert result.validation_before == pytest.approx(loss, abs=1e-6)
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-7, rtol=0)


def test_the_token_budget_is_kept_and_is_the_same_for_every_model(data, tmp_path):
    first = recover(pruned_model("llama"), data, tmp_path / "a", token_budget=1000)
    second = recover(pruned_model("gemma2"), data, tmp_path / "b", token_budget=1000)
    assert first.tokens == second.tokens
    assert 900 < first.tokens <= 1000
    assert first.text_sha256 == second.text_sha256


def test_a_run_killed_at_any_step_goes_on_and_ends_bit_for_bit_the_same(data, tmp_path):
    whole = pruned_model()
    recover(whole, data, tmp_path / "whole", token_budget=4000, checkpoint_every=2, validate_every=3)

    for killed_at in (1, 3, 6):

        def kill(label, done, total, at=killed_at):
            if done == at:
                raise Killed

        folder = tmp_path / f"killed{killed_at}"
        with pytest.raises(Killed):
            recover(pruned_model(), data, folder, token_budget=4000, checkpoint_every=2, validate_every=3, progress=kill)
        again = pruned_model()
        recover(again, data, folder, token_budget=4000, checkpoint_every=2, validate_every=3)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_of_another_model_is_not_used(data, tmp_path):
    recover(pruned_model(), data, tmp_path / "run", token_budget=500)
    other, alone = pruned_model("llama_bias"), pruned_model("llama_bias")
    recover(other, data, tmp_path / "run", token_budget=500)
    recover(alone, data, tmp_path / "alone", token_budget=500)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), alone.parameters(), strict=True))


def test_row_length_and_recomputing_do_not_change_the_result(data, tmp_path):
    models = []
    for i, options in enumerate(({}, {"pack_tokens": 64}, {"recompute": True})):
        models.append(pruned_model())
        recover(models[-1], data, tmp_path / str(i), token_budget=600, learning_rate=1e-3, **options)
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_chosen_adapters_are_those_of_the_lowest_validation_loss_or_of_the_last_step(data, tmp_path, select):
    model, logged = pruned_model(), []
    options = {"token_budget": 500, "learning_rate": 1.5, "validate_every": 1, "select": select}
    result = recover(model, data, tmp_path / "run", log=lambda step, values: logged.append(values["validation_loss"]), **options)
    best, last = logged
    assert best < min(last, result.validation_before) - 0.1
    expected = best if select == "best" else last
    assert result.validation_after == expected
    assert validation_loss(model, data) == pytest.approx(expected, abs=1e-3)


def test_metrics_are_logged_each_step(data, tmp_path):
    logged = []
    result = recover(pruned_model(), data, tmp_path / "run", token_budget=2000, log=lambda step, values: logged.append((step, values)))
    assert [step for step, _ in logged] == list(range(result.steps))
    assert {"loss", "learning_rate", "validation_loss"} <= set(logged[0][1])
    assert "validation_loss" in logged[-1][1]


def test_a_loss_that_is_not_a_number_stops_with_its_step(data, tmp_path):
    model = pruned_model()
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="at step 0"):
        recover(model, data, tmp_path / "run", token_budget=500)


def test_bad_settings_are_refused(data, tmp_path):
    with pytest.raises(BadInput, match="token_budget 3 is less than one training example"):
        recover(pruned_model(), data, tmp_path / "run", token_budget=3)
    for wrong in ({"rank": 0}, {"projections": ["qkv"]}, {"learning_rate": float("nan")}, {"lora_rank": 8}):
        with pytest.raises(ValidationError):
            LoraRecoveryConfig(**wrong)


def test_defaults_are_the_papers():
    config = LoraRecoveryConfig()
    assert (config.rank, config.alpha, config.learning_rate, config.epochs, config.batch_size) == (8, 16, 1e-4, 2, 64)
    assert config.projections == ("q", "k", "v", "o", "gate", "up", "down")
    assert (config.text.source, config.text.max_len, config.text.validation_examples) == ("alpaca", 256, 2000)


def test_epochs_see_every_example_once_each_in_another_order():
    examples = [Example(torch.arange(3 + i % 4), 1) for i in range(23)]
    plan = BatchPlan.of(examples, batch_size=5, epochs=2, token_budget=None, pack_tokens=16, seed=0)
    seen = [i for step in plan.steps for i in step]
    assert sorted(seen[:23]) == sorted(seen[23:]) == list(range(23))
    assert seen[:23] != seen[23:]
    assert sum(pack.num_tokens for step in range(len(plan.steps)) for pack in plan.packs(step)) == plan.num_tokens


def test_packing_wastes_no_row():
    examples = [Example(torch.arange(length), 1) for length in (9, 3, 8, 5, 2, 7, 1, 12)]
    assert sorted(pack.num_tokens for pack in packed(examples, 12)) == [11, 12, 12, 12]
