"""Roles on one model switch cleanly; the run is deterministic and resumable; stages do what they say (spec section 12)."""

import pytest
import torch

from methods.calibration.training_text import Example
from methods.data import PruningData
from methods.nuteprune.pruner import NutePrune
from methods.nuteprune.snapshots import SnapshotManager
from methods.nuteprune.teaching import Distill, TaughtLearner
from methods.pruner import Run
from methods.training.gates import GateKinds
from methods.training.learner import LearnerSettings
from models.anatomy import Anatomy
from models.budget import Budget
from models.slice import slice_model
from models.tiny import random_tokens, tiny_model

BUDGET = Budget(0.35, "blocks")
CPU = torch.device("cpu")


def taught(model, folder, **kinds):
    settings = LearnerSettings(2, 2, ("q", "v", "down"), GateKinds(**kinds), 2 / 3, "product", "soft", 64)
    examples = [Example(row, 0) for row in random_tokens(8, 32, seed=1)]
    learner = TaughtLearner(model, settings, BUDGET, examples, 0, CPU)
    learner.teachers = SnapshotManager(folder, BUDGET.sparsity)
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


def open_gates(learner):
    learner.gates.as_gates({kind: torch.ones_like(p) for kind, p in learner.gates.log_alpha.items()}, learner.live)


def test_a_teacher_forward_leaves_the_student_bit_for_bit(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        with torch.no_grad():
            for parameter in learner.adapters.parameters.values():
                parameter.add_(0.1)
        learner.teachers.store(0.1, {name: tensor + 0.3 for name, tensor in learner.snapshot().items()})
        pack = learner.next_pack()
        learner.draw_gates(pack)
        gates = dict(vars(learner.live))
        before = {name: (p, p.detach().clone(), p.requires_grad) for name, p in learner.adapters.parameters.items()}
        logits = model(pack.tokens).logits
        logits.sum().backward(retain_graph=True)
        gradients = {name: p.grad.clone() for name, p in learner.adapters.parameters.items()}
        taught_by = learner.teacher_logits(pack, 0)
        assert not taught_by.requires_grad
        assert torch.equal(model(pack.tokens).logits, logits)
        assert not torch.allclose(taught_by, model(input_ids=pack.tokens, position_ids=pack.position_ids, use_cache=False).logits[0])
        for name, (parameter, value, trains) in before.items():
            assert dict(model.named_parameters())[name] is parameter
            assert torch.equal(parameter, value)
            assert parameter.requires_grad == trains
            assert torch.equal(parameter.grad, gradients[name])
        assert all(vars(learner.live)[name] is value for name, value in gates.items())


def test_the_dense_teacher_is_the_model_as_it_came(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        with torch.no_grad():
            for parameter in learner.adapters.parameters.values():
                parameter.add_(0.1)
        pack = learner.next_pack()
        learner.draw_gates(pack)
        with torch.no_grad():
            plain = tiny_model("llama")(input_ids=pack.tokens, position_ids=pack.position_ids, use_cache=False).logits[0]
        assert torch.equal(learner.teacher_logits(pack, None), plain)


def test_a_student_that_equals_its_teacher_has_no_loss(tmp_path):
    """Same gates, same adapters; and open gates without adapters against the dense model: only the Lagrangian is left."""
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        stage = distilling(learner)
        pack = learner.next_pack()
        open_gates(learner)
        assert stage._loss(pack).item() == pytest.approx(0, abs=1e-5)  # B starts at 0
        with torch.no_grad():
            for parameter in learner.adapters.parameters.values():
                parameter.add_(0.1)
        assert stage._loss(pack).item() > 1e-3
        learner.teachers.gap = 0
        learner.teachers.store(0.1, learner.snapshot())
        learner.teachers.stored, learner.teachers.gap = 1, 1
        values = {name.removeprefix("gate."): tensor for name, tensor in learner.snapshot().items() if name.startswith("gate.")}
        learner.gates.as_gates(values, learner.live)
        assert stage._loss(pack).item() == pytest.approx(0, abs=1e-5)


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


def test_adapters_rest_in_the_mask_only_epochs(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        stage = distilling(learner, mask_only_steps=2)
        stage.enter()
        before = {name: tensor.clone() for name, tensor in learner.adapters.tensors().items()}
        gates = {kind: p.detach().clone() for kind, p in learner.gates.log_alpha.items()}
        for step in (0, 1):
            stage.step(step)
        assert all(torch.equal(tensor, before[name]) for name, tensor in learner.adapters.tensors().items())
        assert any(not torch.equal(p, gates[kind]) for kind, p in learner.gates.log_alpha.items())
        stage.step(2)
        assert any(not torch.equal(tensor, before[name]) for name, tensor in learner.adapters.tensors().items())


def test_fine_tuning_leaves_the_masks_alone(tmp_path):
    tuned, _, curves = prune(tmp_path / "a", finetune_epochs=6.0, finetune_lr=1e-2)
    untuned, _, _ = prune(tmp_path / "b", finetune_epochs=0.0)
    assert tuned == untuned
    losses = [values["lm_loss"] for _, values in curves if "lm_loss" in values]
    assert sum(losses[-4:]) < sum(losses[:4])


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


def test_the_sliced_model_is_the_one_that_was_trained(tmp_path):
    model = tiny_model("llama_tied")
    with taught(model, tmp_path) as learner:
        for parameter in learner.gates.log_alpha.values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=learner.generator) * 2)
        with torch.no_grad():
            for parameter in learner.adapters.parameters.values():
                parameter.add_(0.1)
            learner.gates.as_gates(learner.harden().values, learner.live)
            trained = model(random_tokens()).logits
        masks = learner.finish()
    with torch.no_grad():
        sliced = slice_model(model, masks)(random_tokens()).logits
    assert float((sliced - trained).abs().max()) < 1e-4 * float(trained.abs().max())


def test_uniform_with_hidden_gates_is_refused():
    config = NutePrune.quick_config().model_copy(update={"is_uniform": True})
    support = NutePrune(config).supports(Anatomy.from_model(tiny_model("llama")))
    assert not support.ok
    assert "hidden_gates: false" in support.reason


def test_slower_heads_leave_the_cut_to_channels(tmp_path):
    settings = {"steps_per_epoch": 12, "hidden_gates": False, "checkpoint_every": 1000}
    even = prune(tmp_path / "a", **settings)[0]
    slow = prune(tmp_path / "b", head_mask_lr=0.01, **settings)[0]
    kept = [sum(int(layer.sum()) for layer in masks.kv_groups) for masks in (even, slow)]
    assert kept[0] < kept[1] == sum(len(layer) for layer in slow.kv_groups)
