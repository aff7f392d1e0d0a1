"""This module runs training stages one after another; killed anywhere, it goes on from its last checkpoint and ends the same."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from prunebench.methods.learning.run.state import read_state, write_state
from prunebench.methods.pruner import Run
from prunebench.models.errors import PrunebenchError

log = logging.getLogger(__name__)

STATE_FILE = "training.safetensors"


class TrainingDiverged(PrunebenchError):
    """Says that a loss is not finite, and at which step."""


class Learner(ABC):
    """Holds what is trained: everything that outlives a stage."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that training changes, the random generator included."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns what else must be known to go on, as JSON."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Puts back what `tensors` and `facts` returned."""


class Stage(ABC):
    """Trains for one stretch, with an optimiser of its own."""

    name: ClassVar[str]
    steps: int

    @abstractmethod
    def enter(self) -> None:
        """Prepares the first step of this call; the learner is already as it was."""

    @abstractmethod
    def step(self, step: int) -> dict[str, float]:
        """Makes one optimiser step (from 0); returns what is logged."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns the optimiser's state."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` returned; called after `enter`."""


def run_stages(stages: Sequence[Stage], learner: Learner, run: Run, *, fingerprint: str, checkpoint_every: int) -> None:
    """Runs all stages, from the last checkpoint on where there is one of this run.

    Args:
        fingerprint: of everything that decides the outcome; a checkpoint with another one is not used.
        checkpoint_every: steps; a checkpoint is also written at the end of each stage.

    Raises:
        TrainingDiverged: a logged value is not finite.
    """
    path = run.folder / STATE_FILE
    first_stage, first_step, found = _resume(path, learner, fingerprint)
    before = 0
    for i, stage in enumerate(stages):
        if i >= first_stage:
            stage.enter()
            start = first_step if i == first_stage else 0
            if i == first_stage and found is not None:
                stage.load(found)
            for step in range(start, stage.steps):
                values = stage.step(step)
                _check_finite(values, stage.name, step)
                run.log_metrics(before + step, values)  # before the checkpoint: a step logged twice does no harm
                if (step + 1) % checkpoint_every == 0 or step + 1 == stage.steps:
                    _save(path, stage, learner, fingerprint, i, step + 1)
                run.progress(stage.name, step + 1, stage.steps)
        before += stage.steps


def _resume(path: Path, learner: Learner, fingerprint: str) -> tuple[int, int, dict[str, Tensor] | None]:
    state = read_state(path)
    if state is None or state[1].get("fingerprint") != fingerprint:
        return 0, 0, None
    tensors, facts = state
    learner.load({n.removeprefix("learner."): t for n, t in tensors.items() if n.startswith("learner.")}, facts["learner"])
    log.info("training goes on at stage %d, step %d", facts["stage"], facts["step"])
    return facts["stage"], facts["step"], {n.removeprefix("stage."): t for n, t in tensors.items() if n.startswith("stage.")}


def _save(path: Path, stage: Stage, learner: Learner, fingerprint: str, index: int, step: int) -> None:
    tensors = {f"learner.{name}": tensor for name, tensor in learner.tensors().items()}
    tensors |= {f"stage.{name}": tensor for name, tensor in stage.tensors().items()}
    write_state(path, tensors, {"fingerprint": fingerprint, "stage": index, "step": step, "learner": learner.facts()})


def _check_finite(values: dict[str, float], stage: str, step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingDiverged(f"{name} is {value} at step {step} of {stage}; lower its learning rate or check the training text.")
