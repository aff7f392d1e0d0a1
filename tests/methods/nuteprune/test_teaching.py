"""Roles on one model switch cleanly, the loss is the formula, and each stage trains what it says."""

import pytest
import torch

from prunebench.methods.data.training_text import Example
from prunebench.methods.learning.gates.hardening import deterministic_values
from prunebench.methods.learning.run.stages import FineTune
from prunebench.methods.learning.text.packing import pack_logits
from prunebench.methods.learning.text.precision import computing_in
from prunebench.methods.nuteprune.teaching import Distill
from prunebench.models.tiny import tiny_model
from tests.methods.learners import CPU, assert_sliced_is_trained, move_adapters, text_of
from tests.methods.nuteprune.support import taught


def open_gates(learner):
    learner.gates.as_gates({kind: torch.ones_like(p) for kind, p in learner.gates.log_alpha.items()}, learner.live)


def test_a_teacher_forward_leaves_the_student_bit_for_bit(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        move_adapters(learner)
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


def test_a_snapshot_teaches_with_the_gates_and_adapters_that_it_was_taken_with(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner, torch.no_grad():
        move_adapters(learner)
        for parameter in learner.gates.log_alpha.values():
            parameter.copy_(torch.randn(parameter.shape, generator=learner.generator))
        learner.teachers.store(0.1, learner.snapshot())
        pack = learner.next_pack()
        learner.gates.as_gates(deterministic_values(learner.gates, learner.anatomy), learner.live)
        as_it_was = pack_logits(model, pack)
        move_adapters(learner)  # the student learns on, and so do its gates
        for parameter in learner.gates.log_alpha.values():
            parameter.add_(torch.randn(parameter.shape, generator=learner.generator))
        learner.draw_gates(pack)
        torch.testing.assert_close(learner.teacher_logits(pack, 0), as_it_was)
        assert not torch.allclose(pack_logits(model, pack), as_it_was, atol=0.1)


def test_the_dense_teacher_is_the_model_as_it_came(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        move_adapters(learner)
        pack = learner.next_pack()
        learner.draw_gates(pack)
        with torch.no_grad():
            plain = tiny_model("llama")(input_ids=pack.tokens, position_ids=pack.position_ids, use_cache=False).logits[0]
        assert torch.equal(learner.teacher_logits(pack, None), plain)


def test_a_student_that_equals_its_teacher_has_no_loss(tmp_path):
    """Same gates, same adapters; and open gates without adapters against the dense model: only the Lagrangian is left."""
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner:
        stage = Distill(learner)
        pack = learner.next_pack()
        open_gates(learner)
        assert stage.loss(pack).item() == pytest.approx(0, abs=1e-5)  # B starts at 0
        move_adapters(learner)
        assert stage.loss(pack).item() > 1e-3
        learner.teachers.gap = 1
        learner.teachers.store(0.1, learner.snapshot())
        values = {name.removeprefix("gate."): tensor for name, tensor in learner.snapshot().items() if name.startswith("gate.")}
        learner.gates.as_gates(values, learner.live)
        assert stage.loss(pack).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2"])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_the_loss_and_its_gradients_are_the_formulas(tmp_path, family, reduction):
    """Against the whole sets of states that transformers returns, the dense model being the teacher; docs/methods/nuteprune.md."""
    model = tiny_model(family)
    weights = {"kl_weight": 0.2, "layer_weight": 0.8, "lm_weight": 0.5, "kl_temperature": 0.7, "kl_reduction": reduction}
    with taught(model, tmp_path, **weights) as learner:
        trained = [*learner.adapters.parameters.values(), *learner.gates.log_alpha.values()]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=learner.generator))
            learner.gates.log_alpha["hidden"].sub_(5)  # so that some dimensions are closed
        pack = learner.next_pack()
        assert pack.num_sequences > 1
        before = learner.generator.get_state()
        learner.draw_gates(pack)
        loss = Distill(learner).loss(pack)
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


def test_a_dense_teacher_leaves_the_adapters_their_gradients_in_bfloat16(tmp_path):
    """The teacher's forward pass casts the same tensors first, without a graph."""
    model = tiny_model("llama")
    with taught(model, tmp_path) as learner, computing_in("bfloat16", CPU):
        move_adapters(learner)
        pack = learner.next_pack()
        learner.draw_gates(pack)
        Distill(learner).loss(pack).backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in learner.adapters.parameters.values())


def test_adapters_rest_in_the_mask_only_epochs(tmp_path):
    model = tiny_model("llama")
    with taught(model, tmp_path, mask_only_epochs=2.0) as learner:
        stage = Distill(learner)
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
    with taught(tiny_model("llama"), tmp_path, mask_only_epochs=4.0, pruning_epochs=8.0) as learner:
        stage = Distill(learner)
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
    later = text_of(text[:8], text[8:])
    with taught(model, tmp_path, later=later, finetune_epochs=40.0, finetune_lr=1e-1) as learner:
        stage = FineTune(learner, decay="linear")
        stage.enter()
        before = {kind: value.clone() for kind, value in learner.harden().values.items()}
        held_out = [values["validation_loss"] for values in map(stage.step, range(40)) if "validation_loss" in values]
        assert learner.sampler.examples == later.train
        assert all(torch.equal(value, before[kind]) for kind, value in learner.harden().values.items())
    assert len(held_out) == 2
    assert held_out[1] < 0.95 * held_out[0]


def test_the_sliced_model_is_the_one_that_was_trained(tmp_path):
    with taught(tiny_model("llama_tied"), tmp_path) as learner:
        assert_sliced_is_trained(learner)
