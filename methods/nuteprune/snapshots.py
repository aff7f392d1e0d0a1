"""This module keeps the numerous teachers, snapshots of the student taken as its sparsity rises, and says which teaches when."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prunebench.methods.learning.run.state import read_state, write_state
from prunebench.models.errors import PrunebenchError

Progression = Literal["progressive", "second_phase", "dense"]

REACHED_MARGIN = 0.002  # expected sparsity may hover just below its target for ever


@dataclass
class SnapshotManager:
    """Collects a snapshot at each level of expected sparsity and picks the teacher of a step.

    Phase A, while sparsity rises: the teacher is the snapshot `gap` levels back, or the dense model while there are fewer.
    Phase B, once all levels are stored and the target is reached: the teacher walks back from sparse to dense, one level
    every q steps; the last `gap` * q steps have the dense model.

    Source: NutePrune, arXiv 2402.09773, by its code, whose edge cases are mended: levels are rounded, q is at least 1, and phase B
    starts `REACHED_MARGIN` below the target (docs/methods/nuteprune.md, eqs. 4 and 5).

    Attributes:
        folder: of the snapshots, one file each; nothing but the teacher of now is in memory.
        run: fingerprint of the run; the snapshots of another one in the same folder are not used.
        target: final sparsity.
        spacing: of the levels.
        gap: levels between student and teacher in phase A.
        progression: "second_phase" has the dense teacher in phase A, "dense" always.
    """

    folder: Path
    run: str
    target: float
    spacing: float = 0.01
    gap: int = 10
    progression: Progression = "progressive"
    stored: int = 0
    steps_of_phase_b: int | None = None
    sparsities: list[float] = field(default_factory=list)
    _cached: tuple[int, dict[str, Tensor]] | None = field(default=None, repr=False)

    @property
    def levels(self) -> list[float]:
        return [self.spacing * i for i in range(1, round(self.target / self.spacing))]

    def select(self, remaining: int) -> int | None:
        """Picks the snapshot that teaches when `remaining` optimiser steps are left, this one included; None: the dense model."""
        if self.progression == "dense":
            return None
        if self.steps_of_phase_b is None:
            return self.stored - self.gap if self.progression == "progressive" and self.stored >= self.gap else None
        count = len(self.levels)
        steps_each = max(1, self.steps_of_phase_b // (count + 1))
        index = min(remaining // steps_each - self.gap, count - 1)
        return index if index >= 0 else None

    def wants(self, sparsity: float) -> bool:
        """Tells whether the state at this expected sparsity is the next snapshot."""
        return self.progression != "dense" and self.stored < len(self.levels) and sparsity >= self.levels[self.stored]

    def store(self, sparsity: float, tensors: dict[str, Tensor]) -> None:
        """Keeps one snapshot on disk; tensors may be on any device."""
        write_state(self._path(self.stored), tensors, {"run": self.run, "sparsity": sparsity})
        self.sparsities.append(sparsity)
        self.stored += 1

    def note(self, sparsity: float, remaining_after: int) -> None:
        """Starts phase B when it is time; `remaining_after` steps follow this one."""
        if self.steps_of_phase_b is None and self.stored == len(self.levels) and sparsity >= self.target - REACHED_MARGIN:
            self.steps_of_phase_b = remaining_after

    def load_snapshot(self, index: int, device: torch.device) -> dict[str, Tensor]:
        """Reads the tensors of a snapshot, on `device`.

        Raises:
            PrunebenchError: its file is gone, or of another run.
        """
        if self._cached is None or self._cached[0] != index:
            found = read_state(self._path(index))
            if found is None or found[1].get("run") != self.run:
                state = "missing or damaged" if found is None else "of another run"
                raise PrunebenchError(f"teacher snapshot {self._path(index)} is {state}; clean this cell and run it again.")
            self._cached = index, {name: tensor.to(device) for name, tensor in found[0].items()}
        return self._cached[1]

    def facts(self) -> dict[str, Any]:
        return {"stored": self.stored, "steps_of_phase_b": self.steps_of_phase_b, "sparsities": self.sparsities}

    def load(self, facts: dict[str, Any]) -> None:
        self.stored, self.steps_of_phase_b = facts["stored"], facts["steps_of_phase_b"]
        self.sparsities = list(facts["sparsities"])
        self._cached = None

    def _path(self, index: int) -> Path:
        return self.folder / f"snapshot_{index:03d}.safetensors"
