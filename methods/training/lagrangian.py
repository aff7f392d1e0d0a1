"""The augmented Lagrangian that makes the expected sparsity follow its target."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lagrangian:
    """lambda1 (s - t) + lambda2 (s - t)^2, minimised over the gates and maximised over both multipliers.

    The multipliers start at 0 and are unconstrained; lambda2 can only grow. They ascend with Adam, so a step is about the
    learning rate whatever the gap. Source: Compresso's code (spec section 8); Wang et al., arXiv 1910.04732.

    Attributes:
        multipliers: (2, constraints) float32, lambda1 and lambda2; give them to an optimiser with `maximize=True`.
    """

    def __init__(self, device: torch.device | str = "cpu", constraints: int = 1) -> None:
        self.multipliers = nn.Parameter(torch.zeros(2, constraints, device=device))

    def __call__(self, sparsity: Tensor, target: float) -> Tensor:
        """The penalty, a scalar; `sparsity` is the expected one of each constraint, with its gradient."""
        gap = (sparsity - target).to(self.multipliers.dtype)
        return (self.multipliers[0] * gap + self.multipliers[1] * gap.square()).sum()
