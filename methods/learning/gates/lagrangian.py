"""This module has the augmented Lagrangian that makes the expected sparsity follow its target."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lagrangian:
    """Computes lambda1 (s - t) + lambda2 (s - t)^2, to be minimised over the gates and maximised over both multipliers.

    The multipliers are unconstrained; lambda1 starts at 0, and lambda2, which can only grow, at `lambda2_start`. They ascend with
    Adam, so a step is about the learning rate whatever the gap. Alone, lambda1 sums up the gap and the gates sum up
    lambda1, which swings like a pendulum; the quadratic term is what damps it, so a run too short for lambda2 to grow needs one
    that starts high.

    Source: Wang et al., arXiv 1910.04732; Compresso's code, where both start at 0 (docs/methods/compresso.md, eq. 7).

    Attributes:
        multipliers: (2, constraints) float32, lambda1 and lambda2; give them to an optimiser with `maximize=True`.
    """

    def __init__(self, device: torch.device | str = "cpu", constraints: int = 1, lambda2_start: float = 0.0) -> None:
        start = torch.tensor([[0.0], [lambda2_start]], device=device)
        self.multipliers = nn.Parameter(start.repeat(1, constraints))

    def __call__(self, sparsity: Tensor, target: float) -> Tensor:
        """Returns the penalty, a scalar; `sparsity` is the expected one of each constraint, with its gradient."""
        gap = (sparsity - target).to(self.multipliers.dtype)
        return (self.multipliers[0] * gap + self.multipliers[1] * gap.square()).sum()
