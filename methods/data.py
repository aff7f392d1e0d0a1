"""Calibration data: the same token samples for every method of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PruningData:
    """What a method may look at while it prunes.

    Attributes:
        calibration: (num_samples, seq_len) int64 token ids of fixed-length crops, without padding; no rows where the grid
            has no calibration data.
        description: where the samples come from, in one line.
    """

    calibration: Tensor
    description: str

    @classmethod
    def none(cls) -> PruningData:
        """No data, for methods that look at weights only."""
        return cls(torch.empty(0, 0, dtype=torch.int64), "none")

    def calibration_batches(self, batch_size: int) -> Iterator[Tensor]:
        """Batches (at most batch_size, seq_len) in a fixed order."""
        yield from self.calibration.split(batch_size) if len(self.calibration) else ()
