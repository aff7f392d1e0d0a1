"""Whole runs are deterministic and resumable and land on the budget; every setting is heard, bad ones are refused."""

import pytest
import torch
from pydantic import ValidationError

from prunebench.methods.data.training_text import TrainingConfig
from prunebench.methods.learning.run.state import read_state
from prunebench.methods.nuteprune.config import NutePruneConfig
from prunebench.methods.nuteprune.pruner import NutePrune
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import BadInput
from prunebench.models.tiny import tiny_model
from tests.methods.learners import BUDGET
from tests.methods.nuteprune.support import distilled, prune


@pytest.mark.parametrize(
    "changes", [{"lm_weight": 1.0}, {"kl_reduction": "token"}, {"kl_temperature": 1.0}, {"layer_scale": "relative"}], ids=str
)
def test_every_setting_of_the_loss_reaches_it(tmp_path, changes):
    first = [prune(tmp_path / name, steps_per_epoch=1, **settings)[2][0][1] for name, settings in (("a", {}), ("b", changes))]
    assert first[0]["expected_sparsity"] == first[1]["expected_sparsity"]
    assert first[0]["distillation_loss"] != pytest.approx(first[1]["distillation_loss"], rel=1e-3)


def test_a_cubic_ramp_asks_for_more_at_first(tmp_path):
    linear, cubic = (distilled(prune(tmp_path / ramp, ramp=ramp)[2]) for ramp in ("linear", "cubic"))
    assert cubic[2]["target_sparsity"] > 1.5 * linear[2]["target_sparsity"]
    assert cubic[-1]["target_sparsity"] == linear[-1]["target_sparsity"] == BUDGET.sparsity


def test_the_second_phase_has_the_steps_that_are_left(tmp_path):
    """The teachers that are logged are those of docs/methods/nuteprune.md, eq. 5, from the step on that reached the target."""
    steps = distilled(prune(tmp_path, spacing=0.05, gap=2, steps_per_epoch=6)[2])
    teachers = [values["teacher_sparsity"] for values in steps]
    state = read_state(tmp_path / "training.safetensors")
    assert state is not None
    facts = state[1]["learner"]["teachers"]
    assert facts["stored"] == len(facts["sparsities"]) == 6
    reached = len(steps) - facts["steps_of_phase_b"] - 1
    assert steps[reached]["expected_sparsity"] >= 0.348
    assert reached == next(i for i, s in enumerate(steps) if s["expected_sparsity"] >= 0.348 and i + 1 >= facts["stored"])
    each = facts["steps_of_phase_b"] // 7
    for step in range(reached + 1, len(steps)):
        index = min((len(steps) - step) // each - 2, 5)
        assert teachers[step] == (facts["sparsities"][index] if index >= 0 else 0.0)
    assert teachers[-1] == 0.0


def test_the_ablations_have_the_teachers_that_they_name(tmp_path):
    settings = {"spacing": 0.05, "gap": 2, "steps_per_epoch": 6}
    steps = {name: distilled(prune(tmp_path / name, distillation=name, **settings)[2]) for name in ("second_phase", "dense")}
    second = [values["teacher_sparsity"] for values in steps["second_phase"]]
    walk = second[next(step for step, sparsity in enumerate(second) if sparsity) :]
    assert len(walk) < len(second)
    assert walk == sorted(walk, reverse=True)
    assert {values["teacher_sparsity"] for values in steps["dense"]} == {0.0}
    plain = prune(tmp_path / "none", distillation="none", **settings)[2]
    assert not distilled(plain)
    assert "lm_loss" in plain[0][1]


def test_the_teacher_is_denser_than_the_student_once_there_are_snapshots(tmp_path):
    _, _, curves = prune(tmp_path, gap=2)
    taught_by = [(v["teacher_sparsity"], v["expected_sparsity"]) for _, v in curves if "teacher_sparsity" in v]
    assert max(teacher for teacher, _ in taught_by) > 0.05
    assert all(teacher <= student for teacher, student in taught_by)
    assert list(tmp_path.glob("snapshot_*.safetensors"))


@pytest.mark.parametrize("killed_at", [3, 38, 46])
def test_killed_and_resumed_ends_the_same(tmp_path, killed_at):
    """Before the first checkpoint, in phase B, in the fine-tuning."""
    changes = {"spacing": 0.05, "gap": 2, "steps_per_epoch": 6}
    whole, model, curves = prune(tmp_path / "whole", **changes)

    def kill(step):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "killed", on_step=kill, **changes)
    again, other, rest = prune(tmp_path / "killed", **changes)
    teachers = [values["teacher_sparsity"] for _, values in curves if "teacher_sparsity" in values]
    assert teachers.index(max(teachers)) < 36  # phase B walks back from the sparsest teacher well before the kill at 38
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert len(rest) < len(curves) or killed_at < 5
    taught_by = [{k: v for k, v in values.items() if k in ("teacher_sparsity", "distillation_loss")} for _, values in curves]
    assert taught_by[-len(rest) :] == [{k: v for k, v in vs.items() if k in ("teacher_sparsity", "distillation_loss")} for _, vs in rest]


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation": "none"},
        {"distillation": "dense"},
        {"distillation": "second_phase"},
        {"lora_rank": 0},
        {"mask_only_epochs": 2.0},
        {"lm_weight": 1.0, "kl_reduction": "token"},
        {"ramp": "cubic"},
    ],
)
def test_every_ablation_lands_on_the_budget(tmp_path, changes):
    masks, model, _ = prune(tmp_path, **changes)
    BUDGET.check(Anatomy.from_model(model).dense_params, masks.count(Anatomy.from_model(model)))


def test_the_fine_tuning_has_its_own_text(tmp_path):
    """'self' is what the model writes; the masks are decided before."""
    own = TrainingConfig(source="self", max_len=32)
    runs = [prune(tmp_path / name, finetune_text=text, self_text_examples=4) for name, text in (("a", None), ("b", own))]
    assert runs[0][0] == runs[1][0]
    first = [next(values["lm_loss"] for _, values in curves if "lm_loss" in values) for _, _, curves in runs]
    assert first[0] != first[1]


def test_fine_tuning_leaves_the_masks_alone(tmp_path):
    tuned, _, curves = prune(tmp_path / "a", finetune_epochs=6.0, finetune_lr=1e-2)
    untuned, _, _ = prune(tmp_path / "b", finetune_epochs=0.0)
    assert tuned == untuned
    losses = [values["lm_loss"] for _, values in curves if "lm_loss" in values]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_both_rates_fall_to_nothing_in_even_steps(tmp_path):
    curves = prune(tmp_path, lora_lr=1e-3, finetune_epochs=2.0, finetune_lr=1e-2)[2]
    pruning = [values["lora_lr"] for values in distilled(curves)]
    tuning = [values["lora_lr"] for _, values in curves if "lm_loss" in values]
    for first, rates in ((1e-3, pruning), (1e-2, tuning)):
        assert rates == pytest.approx([first * (1 - step / len(rates)) for step in range(len(rates))])


def test_uniform_holds_every_layer_to_the_same_target(tmp_path):
    masks, _, _ = prune(
        tmp_path,
        is_uniform=True,
        hidden_gates=False,
        steps_per_epoch=20,
        mask_lr=0.2,
        multiplier_lr=0.2,
        finetune_epochs=0.0,
        distillation="none",
    )
    kept = [int(mask.sum()) / 48 for mask in masks.ffn]
    assert max(kept) - min(kept) < 0.15


def test_uniform_with_hidden_gates_is_refused():
    config = NutePrune.quick_config().model_copy(update={"is_uniform": True})
    support = NutePrune(config).supports(Anatomy.from_model(tiny_model("llama")))
    assert not support.ok
    assert "hidden_gates: false" in support.reason


def test_float16_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(BadInput, match=r"float16 is too coarse .* bfloat16 or float32"):
        prune(tmp_path, model=tiny_model("llama").half())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ramp_epochs": 9}, "ramp_epochs = 9 is not accepted: give at most pruning_epochs, 7"),
        ({"mask_only_epochs": 3, "pruning_epochs": 2}, "mask_only_epochs = 3 is not accepted: give at most pruning_epochs, 2"),
        ({"kl_weight": 0, "layer_weight": 0}, "kl_weight, layer_weight and lm_weight are all 0"),
        ({"gap": 0}, "greater than or equal to 1"),
        ({"spacing": 0.001}, "greater than or equal to 0.002"),
        ({"kl_temperature": float("inf")}, "finite"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        NutePruneConfig(**settings)
    NutePruneConfig(kl_weight=0, layer_weight=0, distillation="none")


def test_slower_heads_leave_the_cut_to_channels(tmp_path):
    settings = {"steps_per_epoch": 12, "hidden_gates": False, "checkpoint_every": 1000}
    even = prune(tmp_path / "a", **settings)[0]
    slow = prune(tmp_path / "b", head_mask_lr=0.01, **settings)[0]
    kept = [sum(int(layer.sum()) for layer in masks.kv_groups) for masks in (even, slow)]
    assert kept[0] < kept[1] == sum(len(layer) for layer in slow.kv_groups)
