"""The losses between student and teacher, computed where the student's states arise, so that memory grows by one set only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods.training.cross_entropy import positions_at_once
from models.anatomy import Anatomy

KLReduction = Literal["sequence", "token"]
LayerScale = Literal["absolute", "relative"]

TINY = 1e-12  # a token without a living dimension has no error and no length


class _MaskedError(torch.autograd.Function):
    """Sum over tokens of weight * |teacher - student|^2 where the student is not zero, in float32; keeps no copy of either."""

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        context.save_for_backward(student, teacher, weights)
        errors = (teacher.float() - student.float()).square_().mul_(student != 0)
        return torch.dot(errors.sum(-1).flatten(), weights.flatten())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, weights = context.saved_tensors
        difference = (student.float() - teacher.float()).mul_(student != 0)
        return difference.mul_((2 * gradient * weights).unsqueeze(-1)).to(student.dtype), None, None


def layer_loss(student: Tensor, teacher: Tensor, scale: LayerScale = "absolute") -> Tensor:
    """Squared difference of one layer's (..., hidden) states over the dimensions that the student has; a float32 scalar.

    Args:
        scale: "absolute" is the mean over tokens and dimensions (the official loss). "relative" is the mean over tokens of the
            squared distance divided by the squared length of the longer state (a constant to the gradient), at most 4: the
            same for models and tokens of any scale, where one token with huge activations would else be nearly all of the loss,
            whether the teacher has them or only the student.

    Source: NutePrune's code (spec section 5), in float32 instead of half precision; the relative form is ours.
    """
    live = student != 0
    if scale == "absolute":
        weights = torch.ones(student.shape[:-1], device=student.device) / live.sum().clamp(min=1)
    else:
        lengths = torch.maximum(*((state.detach().float().square() * live).sum(-1) for state in (student, teacher)))
        weights = 1 / lengths.clamp(min=TINY) / lengths.numel()
    return cast(Tensor, _MaskedError.apply(student, teacher, weights))


class _KL(torch.autograd.Function):
    """tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)), summed over positions, a chunk at a time.

    The gradient is made on the way, in the teacher's place, so that neither set of logits lives until the backward pass.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        chunk = positions_at_once(student)
        for ours, theirs in zip(student.split(chunk), teacher.split(chunk), strict=True):
            log_ours = torch.log_softmax(ours.float() / temperature, -1)
            log_theirs = torch.log_softmax(theirs.float() / temperature, -1)
            chance = log_theirs.exp()
            total += torch.dot(chance.flatten(), log_theirs.sub_(log_ours).flatten())
            theirs.copy_(log_ours.exp_().sub_(chance).mul_(temperature))
        context.of_student = teacher
        return total * temperature**2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        of_student = context.of_student
        del context.of_student
        return of_student.mul_(gradient), None, None


def kl_loss(student: Tensor, teacher: Tensor, *, temperature: float, sequences: int, reduction: KLReduction) -> Tensor:
    """Temperature-scaled KL of (positions, vocabulary) logits; a float32 scalar.

    Args:
        teacher: without gradient; its memory is used up.
        sequences: in the batch.
        reduction: "sequence" divides the sum over all positions by the sequences alone (the official scale, on which the
            Lagrangian's balance rests); "token" is the mean over positions.
    """
    total: Tensor = _KL.apply(student, teacher, temperature)
    return total / (sequences if reduction == "sequence" else len(student))


@dataclass
class LayerStates:
    """Reads the state after every layer as a forward pass goes: kept of a teacher, compared at once for a student.

    As transformers' `hidden_states` has it, the last one is after the final norm and the embedding is left out.
    """

    scale: LayerScale = "absolute"
    teacher: list[Tensor] = field(default_factory=list)
    loss: Tensor | None = None

    @contextmanager
    def kept(self, model: PreTrainedModel, anatomy: Anatomy, tokens: int) -> Iterator[None]:
        """Within it, a forward pass fills `teacher`, from the first `tokens` positions."""
        self.teacher.clear()
        with _hooked(model, anatomy, lambda _, state: self.teacher.append(state[:, :tokens])):
            yield

    @contextmanager
    def compared(self, model: PreTrainedModel, anatomy: Anatomy, tokens: int) -> Iterator[None]:
        """Within it, a forward pass sums the layer losses of the first `tokens` positions against `teacher` into `loss`."""
        self.loss = None

        def compare(index: int, state: Tensor) -> None:
            here = layer_loss(state[:, :tokens], self.teacher[index].to(state.device), self.scale)
            self.loss = here if self.loss is None else self.loss + here.to(self.loss.device)

        with _hooked(model, anatomy, compare):
            yield


@contextmanager
def _hooked(model: PreTrainedModel, anatomy: Anatomy, act: Any) -> Iterator[None]:
    paths = [layer.path for layer in anatomy.layers[:-1]] + [anatomy.final_norm]

    def reader(index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            act(index, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [model.get_submodule(path).register_forward_hook(reader(i)) for i, path in enumerate(paths)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
