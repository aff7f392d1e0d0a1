"""The losses have the official scale, ignore what the student lost, and have right gradients."""

import pytest
import torch

from prunebench.methods.nuteprune.distillation import LayerStates, kl_loss, layer_loss
from prunebench.models.anatomy import Anatomy
from prunebench.models.tiny import FAMILIES, random_tokens, tiny_model


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl(student, teacher, sequences=1, reduction="sequence"):
    return kl_loss(student, teacher.clone(), temperature=2 / 3, sequences=sequences, reduction=reduction)


def test_kl_equals_its_definition_and_its_gradient():
    student, teacher = draw(600, 7).requires_grad_(), draw(600, 7, seed=1)
    reference_input = student.detach().clone().requires_grad_()
    tau = 2 / 3
    reference = (
        torch.nn.functional.kl_div(torch.log_softmax(reference_input / tau, -1), torch.softmax(teacher / tau, -1), reduction="sum")
        * tau**2
        / 3
    )
    ours = kl(student, teacher, sequences=3)
    torch.testing.assert_close(ours, reference)
    ours.backward()
    reference.backward()
    torch.testing.assert_close(student.grad, reference_input.grad)


def test_equal_logits_have_no_gradient():
    """Adam would make steps of a rounding's size as large as any others."""
    logits = draw(5, 4096).mul_(4).requires_grad_()
    loss = kl(logits, logits.detach())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_kl_of_large_logits_is_exact(shift):
    student, teacher = 5 * draw(6, 3000) + shift, 5 * draw(6, 3000, seed=1) + shift
    exact = torch.nn.functional.kl_div(
        torch.log_softmax(student.double() * 1.5, -1), torch.softmax(teacher.double() * 1.5, -1), reduction="sum"
    )
    assert kl(student.requires_grad_(), teacher).item() == pytest.approx(exact.item() / 2.25, rel=1e-5)


def test_longer_sequences_count_more_and_more_sequences_do_not():
    student, teacher = draw(10, 7), draw(10, 7, seed=1)
    once = kl(student, teacher)
    twice = student.repeat(2, 1), teacher.repeat(2, 1)
    torch.testing.assert_close(kl(*twice), 2 * once)
    torch.testing.assert_close(kl(*twice, sequences=2), once)
    torch.testing.assert_close(kl(*twice, reduction="token"), once / 10)


def test_layer_loss_equals_its_definition_and_its_gradient():
    student, teacher = draw(1, 9, 8), draw(1, 9, 8, seed=1)
    student[..., 2:4] = 0
    student.requires_grad_()
    other = student.detach().clone().requires_grad_()
    live = other != 0
    reference = (teacher - other)[live].square().mean()
    ours = layer_loss(student, teacher)
    torch.testing.assert_close(ours, reference)
    ours.backward()
    reference.backward()
    torch.testing.assert_close(student.grad, other.grad)


def test_relative_layer_loss_equals_its_definition_and_its_gradient():
    student, teacher = draw(1, 9, 8), draw(1, 9, 8, seed=1)
    student[..., 2:4] = 0
    student[0, 0] = 0  # a token that lost every dimension has no error
    student.requires_grad_()
    other = student.detach().clone().requires_grad_()
    live = (other != 0).float()
    lengths = torch.maximum((teacher.square() * live).sum(-1), (other.detach().square() * live).sum(-1)).clamp(min=1e-12)
    per_token = ((teacher - other).square() * live).sum(-1) / lengths
    ours = layer_loss(student, teacher, "relative")
    torch.testing.assert_close(ours, per_token.mean())
    (3 * ours).backward()
    (3 * per_token.mean()).backward()
    torch.testing.assert_close(student.grad, other.grad)


def test_relative_layer_loss_knows_no_scale_so_that_no_token_outweighs_the_others():
    teacher = draw(1, 9, 8)
    student = teacher * 0.9
    torch.testing.assert_close(layer_loss(student, teacher, "relative"), torch.tensor(0.01))
    huge = torch.ones(1, 9, 1)
    huge[0, 0] = 1e4
    torch.testing.assert_close(layer_loss(student * huge, teacher * huge, "relative"), torch.tensor(0.01))
    assert layer_loss(student * huge, teacher * huge) > 1e5 * layer_loss(student, teacher)


def test_a_student_that_explodes_on_one_token_does_not_outweigh_the_others_in_the_relative_loss():
    teacher = draw(1, 9, 8)
    student = teacher.clone()
    student[0, 0] *= -1e4
    assert layer_loss(student, teacher, "relative") < 4 / 9


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_what_the_student_lost_does_not_count(scale):
    student, teacher = draw(1, 9, 8), draw(1, 9, 8, seed=1)
    student[..., 2:4] = 0
    changed = teacher.clone()
    changed[..., 2:4] += 5
    assert torch.equal(layer_loss(student, teacher, scale), layer_loss(student, changed, scale))


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_a_tail_has_no_say_in_either_loss_and_gets_no_gradient(scale):
    def losses(length):
        student, teacher = draw(1, 14, 8)[:, :length], draw(1, 14, 8, seed=1)[:, :length]
        student[..., 2] = 0
        student.requires_grad_()
        layer = layer_loss(student, teacher, scale, 9)
        kl = kl_loss(student[0], teacher[0].clone(), temperature=2 / 3, sequences=1, reduction="token", positions=9)
        return layer, kl, torch.autograd.grad(layer + kl, student)[0]

    (layer, kl, gradient), (expected_layer, expected_kl, expected) = losses(14), losses(9)
    torch.testing.assert_close(layer, expected_layer)
    torch.testing.assert_close(kl, expected_kl)
    torch.testing.assert_close(gradient[:, :9], expected)
    assert not gradient[:, 9:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_are_those_that_transformers_returns(family):
    model = tiny_model(family)
    states = LayerStates()
    with torch.no_grad(), states.kept(model, Anatomy.from_model(model)):
        reference = model(random_tokens(), output_hidden_states=True).hidden_states[1:]
    assert len(states.teacher) == len(reference)
    for ours, theirs in zip(states.teacher, reference, strict=True):
        assert torch.equal(ours, theirs)
