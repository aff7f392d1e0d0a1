"""This module computes cross-entropy over large vocabularies a chunk of positions at a time, without copies of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NO_TARGET = -100
CPU_BYTES, ACCELERATOR_BYTES = 1 << 19, 1 << 28
"""Of float32 held at once: what fits a CPU's cache, and what keeps an accelerator busy."""


def positions_at_once(logits: Tensor, chunks: int = 1) -> int:
    """Counts the rows of (positions, vocabulary) logits to make a softmax of at once, on their device, where `chunks` so large are held."""
    held = CPU_BYTES if logits.device.type == "cpu" else ACCELERATOR_BYTES
    return max(1, held // (4 * chunks * logits.shape[-1]))


class _SummedCrossEntropy(torch.autograd.Function):
    """Makes the gradient on the way, in the logits' dtype, so that no float32 copy of the logits ever exists."""

    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits) if context.needs_input_grad[0] else None
        chunk = positions_at_once(logits)
        for start in range(0, len(logits), chunk):
            rows = slice(start, start + chunk)
            has_target = targets[rows] != NO_TARGET
            wanted = torch.where(has_target, targets[rows], 0).unsqueeze(1)
            log_chances = torch.log_softmax(logits[rows].float(), -1)
            total -= torch.where(has_target, log_chances.gather(1, wanted).squeeze(1), 0).sum()
            if gradient is not None:
                chances = log_chances.exp_()
                chances.scatter_add_(1, wanted, chances.new_full(wanted.shape, -1.0))
                gradient[rows] = chances.mul_(has_target.unsqueeze(1))
        context.gradient = gradient
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        of_logits = context.gradient
        del context.gradient
        return of_logits.mul_(gradient), None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over the targets of -log softmax(logits)[target], float32, as torch's does, in less memory.

    Differentiable once: a second backward pass through the same graph fails.

    Args:
        logits: (positions, vocabulary), any floating dtype.
        targets: (positions,); those that are NO_TARGET don't count. Without any target the loss is not a number.
    """
    total: Tensor = _SummedCrossEntropy.apply(logits, targets)
    return total / (targets != NO_TARGET).sum()
