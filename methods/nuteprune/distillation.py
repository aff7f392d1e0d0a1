"""This module computes the losses between student and teacher where the student's states arise, so that memory grows by one set.

The formulas are eqs. 1 and 2 of docs/methods/nuteprune.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.methods.learning.text.cross_entropy import positions_at_once
from prunebench.models.anatomy import Anatomy

KLReduction = Literal["sequence", "token"]
LayerScale = Literal["absolute", "relative"]

TINY = 1e-12  # a token without a living dimension has no error and no length


class _MaskedError(torch.autograd.Function):
    """Sums weight * |teacher - student|^2 over tokens, in the dimensions where the student is not zero, in float32.

    It keeps the difference, and neither of the two states.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, scale: LayerScale, tokens: int) -> Tensor:
        live = student.float().sign().abs_()  # 1 where the student is not zero
        live[..., tokens:, :] = 0
        difference = (teacher.float() - student.float()).mul_(live)
        if scale == "absolute":
            weights = 1 / live.sum().clamp_(min=1)
            total = torch.dot(difference.flatten(), difference.flatten()) * weights
        else:
            lengths = [torch.linalg.vector_norm(state, dim=-1, keepdim=True) for state in (student.float(), teacher.float().mul(live))]
            longer = torch.maximum(*lengths).square_().clamp_(min=TINY)
            weights = 1 / longer / longer[..., :tokens, :].numel()
            total = (torch.linalg.vector_norm(difference, dim=-1, keepdim=True).square_() * weights).sum()
        context.save_for_backward(difference.to(student.dtype), weights)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        difference, weights = context.saved_tensors
        return (difference.float() * (-2 * gradient * weights)).to(difference.dtype), None, None, None


def layer_loss(student: Tensor, teacher: Tensor, scale: LayerScale = "absolute", tokens: int | None = None) -> Tensor:
    """Returns the squared difference of one layer's (..., tokens, hidden) states where the student has dimensions, a float32 scalar.

    Args:
        scale: "absolute" is the mean over tokens and dimensions (the official loss). "relative" is the mean over tokens of the
            squared distance divided by the squared length of the longer state (a constant to the gradient), at most 4: the
            same for models and tokens of any scale, where one token with huge activations would else be nearly all of the loss,
            whether the teacher has them or only the student. A token without a living dimension has no error.
        tokens: that count, the first ones; None: all.

    Source: NutePrune, arXiv 2402.09773, and its code, in float32 instead of half precision; the relative form is ours.
    """
    return cast(Tensor, _MaskedError.apply(student, teacher, scale, student.shape[-2] if tokens is None else tokens))


class _KL(torch.autograd.Function):
    """Computes tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)), summed over the first `positions`, a chunk at a time.

    The gradient is made on the way, in the teacher's place, so that neither set of logits lives until the backward pass. With
    e = exp((z - max z) / tau) and its sum s, a row is sum(e_t / s_t * log(e_t / e_s)) + log(s_s / s_t): one pass of exp a side,
    which torch's log_softmax does not give.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, temperature: float, positions: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        chunk = positions_at_once(student, chunks=3)
        shape = min(chunk, positions), student.shape[-1]
        chunks = [torch.empty(shape, dtype=torch.float32, device=student.device) for _ in range(3)]
        for ours, theirs in zip(student[:positions].split(chunk), teacher[:positions].split(chunk), strict=True):
            of_student, of_teacher, chance = (held[: len(ours)] for held in chunks)
            for logits, scaled in ((ours, of_student), (theirs, of_teacher)):
                highest = scaled.copy_(logits).amax(-1, keepdim=True)
                torch.add(highest / -temperature, scaled, alpha=1 / temperature, out=scaled)
            torch.exp(of_teacher, out=chance)
            log_odds = of_teacher.sub_(of_student)
            of_student.exp_()
            sum_of_student, sum_of_teacher = of_student.sum(-1, keepdim=True), chance.sum(-1, keepdim=True)
            chance.mul_(temperature / sum_of_teacher)
            total += torch.dot(chance.flatten(), log_odds.flatten()) / temperature + (sum_of_student / sum_of_teacher).log().sum()
            theirs.copy_(of_student.mul_(temperature / sum_of_student).sub_(chance))
        teacher[positions:] = 0
        context.of_student = teacher
        return total * temperature**2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        of_student = context.of_student
        del context.of_student
        return of_student.mul_(gradient), None, None, None


def kl_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, sequences: int, reduction: KLReduction, positions: int | None = None
) -> Tensor:
    """Returns the temperature-scaled KL of (positions, vocabulary) logits, a float32 scalar.

    Args:
        teacher: without gradient; its memory is used up.
        sequences: in the batch.
        reduction: "sequence" divides the sum over all positions by the sequences alone (the official scale, on which the
            Lagrangian's balance rests); "token" is the mean over positions.
        positions: that count, the first ones; None: all.
    """
    positions = len(student) if positions is None else positions
    total: Tensor = _KL.apply(student, teacher, temperature, positions)
    return total / (sequences if reduction == "sequence" else positions)


@dataclass
class LayerStates:
    """Reads the state after every layer as a forward pass goes: kept of a teacher, compared at once for a student.

    As transformers' `hidden_states` has it, the last one is after the final norm and the embedding is left out.
    """

    scale: LayerScale = "absolute"
    teacher: list[Tensor] = field(default_factory=list)
    loss: Tensor | None = None

    @contextmanager
    def kept(self, model: PreTrainedModel, anatomy: Anatomy) -> Iterator[None]:
        """Lets a forward pass fill `teacher`, for as long as a block lasts."""
        self.teacher.clear()
        with _hooked(model, anatomy, self.teacher.append):
            yield

    @contextmanager
    def compared(self, model: PreTrainedModel, anatomy: Anatomy, tokens: int) -> Iterator[None]:
        """Lets a forward pass sum its layer losses against `teacher` into `loss`, for as long as a block lasts.

        The first `tokens` positions count; `teacher` is emptied on the way.
        """
        self.loss = None

        def compare(state: Tensor) -> None:
            here = layer_loss(state, self.teacher.pop(0).to(state.device), self.scale, tokens)
            self.loss = here if self.loss is None else self.loss + here.to(self.loss.device)

        with _hooked(model, anatomy, compare):
            yield


@contextmanager
def _hooked(model: PreTrainedModel, anatomy: Anatomy, act: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        act(output[0] if isinstance(output, tuple) else output)

    paths = [layer.path for layer in anatomy.layers[:-1]] + [anatomy.final_norm]
    handles = [model.get_submodule(path).register_forward_hook(hook) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
