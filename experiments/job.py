"""What a worker needs to run one cell, and what it answers. Both travel as JSON, to another process or machine."""

from __future__ import annotations

from typing import Literal

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.config import Part
from prunebench.leaderboard.record import Status
from prunebench.models.loading import ModelSpec


class Job(Part):
    """One cell to run.

    Attributes:
        until: `prune` stops after the pruned checkpoint is written (training on one machine, evaluation on another).
        needs_checkpoint: refuse to prune; only go on from a checkpoint that is there.
    """

    out: str
    cell: CellConfig
    model: ModelSpec
    data_dir: str | None = None
    plugins: tuple[str, ...] = ()
    command: str = ""
    threads: int | None = None
    token_budget: int | None = None
    keep_checkpoints: bool = True
    until: Literal["prune", "record"] = "record"
    needs_checkpoint: bool = False


class Outcome(Part):
    """How a cell ended.

    Attributes:
        status: a record's status; `pruned` when the job asked for no more; `busy` when another run works on the cell;
            `output_error` when the output folder failed (nothing about the cell is known then);
            `bad_input` when the run can't go on for a reason the user must mend first.
    """

    cell_id: str
    status: Status | Literal["pruned", "busy", "output_error", "bad_input"]
    reason: str = ""
