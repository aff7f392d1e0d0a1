"""This module has the hard-concrete distribution: gates in [0, 1] that may be exactly 0, and have gradients all the same.

The formulas are eqs. 3 to 5 of docs/methods/compresso.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNIFORM_MARGIN = 1e-6
PROBABILITY_MARGIN = 1e-6
LOG_ALPHA_LIMIT = math.log(100.0)  # and log(0.01) below
SCORE_SCALE = 0.8  # of the deterministic gate in Compresso's code
INITIAL_SPREAD = 0.01
INITIAL_MEAN = 10.0  # heads and residual dimensions; the first clamp makes it LOG_ALPHA_LIMIT
INITIAL_DROP_RATE = 0.01  # MLP channels start at log((1 - p) / p)


@dataclass(frozen=True)
class HardConcrete:
    """Describes a binary concrete variable that is stretched to (lower, upper) and clamped to [0, 1].

    Source: Louizos et al., arXiv 1712.01312, section 2.2, with the constants of Compresso's code.
    """

    temperature: float = 2 / 3
    lower: float = -0.1
    upper: float = 1.1

    @property
    def threshold(self) -> float:
        """The log-alpha at which a gate is zero half of the time."""
        return self.temperature * math.log(-self.lower / self.upper)

    def sample(self, log_alpha: Tensor, generator: torch.Generator) -> Tensor:
        """Draws each gate once, in log_alpha's shape; gradients pass only where the draw is not clamped.

        Args:
            generator: on the CPU, so that every device draws the same numbers.
        """
        uniform = torch.rand(log_alpha.shape, generator=generator, dtype=torch.float32)
        uniform = (uniform * (1 - 2 * UNIFORM_MARGIN) + UNIFORM_MARGIN).to(log_alpha.device)
        noise = torch.log(uniform) - torch.log1p(-uniform)
        stretched = torch.sigmoid((noise + log_alpha) / self.temperature) * (self.upper - self.lower) + self.lower
        return torch.nn.functional.hardtanh(stretched, 0.0, 1.0)

    def nonzero_probability(self, log_alpha: Tensor) -> Tensor:
        """Returns the chance that a draw is not zero, kept away from 0 and 1 by 1e-6."""
        return torch.sigmoid(log_alpha - self.threshold).clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)

    def deterministic(self, log_alpha: Tensor) -> Tensor:
        """Returns the gate without noise, in (0, 1), which ranks gates at the end and scales those that stay."""
        return torch.sigmoid(log_alpha / self.temperature * SCORE_SCALE)


@torch.no_grad()
def clamp_log_alpha(log_alpha: Tensor) -> None:
    """Keeps every gate within reach of the gradient, in place; call it after each optimiser step."""
    log_alpha.clamp_(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)


def initial_log_alpha(count: int, generator: torch.Generator, *, drop_rate: float | None = None) -> Tensor:
    """Draws (count,) float32 log-alphas of open gates: Normal(10, 0.01) or, with a drop rate p, Normal(log((1 - p) / p), 0.01)."""
    mean = INITIAL_MEAN if drop_rate is None else math.log((1 - drop_rate) / drop_rate)
    return mean + INITIAL_SPREAD * torch.randn(count, generator=generator)


def bernoulli_entropy(probability: Tensor) -> Tensor:
    """Returns the mean entropy in nats of independent yes-or-no variables; 0 when every gate is decided."""
    p = probability.detach().clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()
