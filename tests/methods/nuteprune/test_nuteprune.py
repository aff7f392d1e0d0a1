"""Roles on one model switch cleanly; the run is deterministic and resumable; stages do what they say (spec section 12)."""

import pytest
import torch
from pydantic import ValidationError

from methods.calibration.training_text import Example, TrainingConfig
from methods.data import PruningData
from methods.nuteprune.pruner import NutePrune, NutePruneConfig
from methods.nuteprune.snapshots import SnapshotManager
from methods.nuteprune.teaching import Distill, TaughtLearner
from methods.pruner import Run
from methods.training.checkpoint import read_state
from methods.training.gates import GateKinds
from methods.training.learner import LearnerSettings
from methods.training.packing import lm_loss
from methods.training.precision import computing_in
from methods.training.stages import FineTune
from models.anatomy import Anatomy
from models.budget import Budget
from models.errors import BadInput
from models.slice import slice_model
from models.tiny import random_tokens, tiny_model

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
        learner.teachers.gap = 1
        learner.teachers.store(0.1, learner.snapshot())
        values = {name.removeprefix("gate."): tensor for name, tensor in learner.snapshot().items() if name.startswith("gate.")}
        learner.gates.as_gates(values, learner.live)
        assert stage._loss(pack).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2"])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_the_loss_and_its_gradients_are_the_formulas(tmp_path, family, reduction):
    """Against the whole sets of states that transformers returns (spec section 5), the dense model being the teacher."""
    model = tiny_model(family)
    weights = {"kl_weight": 0.2, "layer_weight": 0.8, "lm_weight": 0.5, "kl_temperature": 0.7, "kl_reduction": reduction}
    with taught(model, tmp_path) as learner:
        trained = [*learner.adapters.parameters.values(), *learner.gates.log_alpha.values()]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=learner.generator))
            learner.gates.log_alpha["hidden"].sub_(5)  # so that some dimensions are closed
        pack = learner.next_pack()
        assert pack.num_sequences > 1
        before = learner.generator.get_state()
        learner.draw_gates(pack)
        loss = distilling(learner, **weights)._loss(pack)
        gradients = torch.autograd.grad(loss, trained)

        inputs = {"position_ids": pack.position_ids, "use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            teacher = tiny_model(family)(pack.tokens, **inputs)
        learner.generator.set_state(before)
        learner.draw_gates(pack)
        student = model(pack.tokens, **inputs)
        pairs = list(zip(teacher.hidden_states[1:], student.hidden_states[1:], strict=True))
        assert all((ours == 0).any() for _, ours in pairs)
        layers = sum(((theirs - ours)[ours != 0] ** 2).mean() for theirs, ours in pairs)
        soft = [torch.log_softmax(logits / 0.7, -1) for logits in (student.logits, teacher.logits)]
        kl = 0.7**2 * torch.nn.functional.kl_div(*soft, reduction="sum", log_target=True)
        kl = kl / (pack.num_sequences if reduction == "sequence" else pack.num_tokens)
        lm = torch.nn.functional.cross_entropy(student.logits[0, pack.predict_at], pack.targets)
        formula = 0.2 * kl + 0.8 * layers + 0.5 * lm
        assert loss.item() == pytest.approx(formula.item(), rel=1e-5)
        for ours, theirs in zip(gradients, torch.autograd.grad(formula, trained), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


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


def test_the_snapshots_are_soft_and_as_many_closed_as_expected(tmp_path):
    with taught(tiny_model("llama"), tmp_path) as learner:
        with torch.no_grad():
            for parameter in learner.gates.log_alpha.values():
                parameter.copy_(torch.randn(parameter.shape, generator=learner.generator))
        snapshot, expected = learner.snapshot(), learner.gates.probabilities()
        gates = {kind: snapshot[f"gate.{kind}"] for kind in expected}
        assert {kind: len(values) for kind, values in gates.items()} == {"kv_groups": 6, "ffn": 144, "hidden": 32}
        for kind in ("kv_groups", "ffn"):
            for values, chances in zip(learner.gates.split(kind, gates), learner.gates.split(kind, expected), strict=True):
                assert int((values == 0).sum()) == round(float((1 - chances).sum().detach()))
        assert int((gates["hidden"] == 0).sum()) == round(float((1 - expected["hidden"]).sum().detach()))
        assert all(((values > 0) & (values < 1)).sum() > 0.2 * len(values) for values in gates.values())


def test_the_second_phase_has_the_steps_that_are_left(tmp_path):
    """What `prune` logs of its teachers is the order of spec section 4, from the step on that found the target reached."""
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


def test_a_dense_teacher_leaves_the_adapters_their_gradients_in_bfloat16(tmp_path):
    """The teacher's forward pass casts the same tensors first, without a graph."""
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner, computing_in("bfloat16", CPU):
        with torch.no_grad():
            for parameter in learner.adapters.parameters.values():
                parameter.add_(0.1)
        pack = learner.next_pack()
        learner.draw_gates(pack)
        distilling(learner)._loss(pack).backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in learner.adapters.parameters.values())


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


def test_the_adapters_start_at_their_full_rate_after_resting(tmp_path):
    with taught(tiny_model("llama"), tmp_path) as learner:
        stage = distilling(learner, mask_only_steps=4, pruning_steps=8)
        stage.enter()
        rates = []
        for step in range(8):
            stage.step(step)
            rates.append(stage.optimizer.param_groups[0]["lr"])
    assert rates[4:] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_fine_tuning_lowers_the_loss_on_held_out_text(tmp_path):
    """Text whose next token is the last one plus one, so that there is something to learn for other examples."""
    starts = torch.arange(12)[:, None] * 3
    text = [Example(row, 0) for row in (starts + torch.arange(32)) % 60]
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        settings = {"steps": 40, "lora_lr": 1e-1, "decay": "linear", "accumulation": 1}
        stage = FineTune(learner, lambda pack: lm_loss(model, pack), **settings, examples=text[:8], validation=text[8:])
        stage.enter()
        before = {kind: value.clone() for kind, value in learner.harden().values.items()}
        held_out = [values["validation_loss"] for values in map(stage.step, range(40)) if "validation_loss" in values]
        assert learner.sampler.examples == text[:8]
        assert all(torch.equal(value, before[kind]) for kind, value in learner.harden().values.items())
    assert len(held_out) == 2
    assert held_out[1] < 0.95 * held_out[0]


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
