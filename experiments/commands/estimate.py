"""What a grid will take, before it runs: seconds, memory and disk of each cell.

Time is work over speed. Work: floating-point operations of every stage, from the model's parameter counts and the tokens
that each protocol pushes through it. Speed: a matrix product timed here for a fraction of a second. Good to a factor of
two on the machine that runs `plan`; a run elsewhere scales with that machine's speed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.cell_folder import CellFolder
from prunebench.experiments.checks.methods import training_tokens
from prunebench.experiments.config import GridConfig
from prunebench.experiments.plan import PlannedCell
from prunebench.experiments.progress import duration, gigabytes
from prunebench.experiments.run_cell import finished_record, millions
from prunebench.models.anatomy import count_params
from prunebench.models.loading import check_loads

FORWARD = 2  # operations per parameter and token
TRAIN = 6
TRAIN_ADAPTERS = 4  # frozen weights need no gradient of their own
UTILISATION = 0.6  # share of a matrix product's speed that a whole forward pass reaches (0.63 measured, SmolLM2 on one core)
FIXED_SECONDS = 4.0  # reading files, checking hashes, starting the evaluator
DISK_BYTES_PER_SECOND = 4e8


@dataclass(frozen=True)
class Estimate:
    """One cell's cost; None where the model's shape can't be had without fetching it.

    is_lower_bound: it trains until its text is used up, and how long that takes isn't known before the text is read.
    """

    seconds: float | None
    memory_bytes: float | None
    disk_bytes: float | None
    params: int | None
    is_lower_bound: bool = False


def measure_speed(threads: int | None = None) -> float:
    """Floating-point operations a second of a float32 matrix product here."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    size = 768
    a, b = torch.rand(size, size), torch.rand(size, size)
    a @ b
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def evaluation_tokens(cell: CellConfig) -> int:
    """Tokens that the protocols of a cell put through the model."""
    from prunebench.evaluation import get_protocol
    from prunebench.evaluation.catalogue import known_tasks

    tokens = 0
    for choice in cell.protocols:
        for entry in get_protocol(choice.name).tasks:
            size = known_tasks()[entry.task].size
            tokens += size.shared + size.tokens * min(choice.limit or size.documents, size.documents)
    return tokens


def estimate(cell: PlannedCell, speed: float) -> Estimate:
    """The cost of one cell at `speed` operations a second."""
    model = check_loads(cell.model)
    if model is None:
        return Estimate(None, None, None, None)
    config = cell.config
    dense = count_params(model)
    width = model.dtype.itemsize
    kept = (
        dense.total
        if config.sparsity is None
        else dense.total - config.sparsity * dense.of("total" if config.basis == "total" else "blocks")
    )
    operations = FORWARD * kept * evaluation_tokens(config)
    if config.efficiency.enabled:
        each = config.efficiency.prompt_tokens + 4 * config.efficiency.new_tokens  # decoding is slower than its operations
        operations += FORWARD * kept * each * (config.efficiency.repeats + 1)
    disk = 0.0
    is_lower_bound = False
    if not config.is_dense:
        learning, recovering = training_tokens(config)
        is_lower_bound = learning is None or recovering is None
        operations += TRAIN_ADAPTERS * (dense.total * (learning or 0) + kept * (recovering or 0))
        disk = kept * width
        calibration = config.calibration
        if calibration is not None and _needs_calibration(config.method):
            operations += TRAIN * dense.total * calibration.num_samples * calibration.seq_len
    seconds = operations / (speed * UTILISATION) + (dense.total * width + 3 * disk) / DISK_BYTES_PER_SECOND + FIXED_SECONDS
    embedding: Any = model.get_input_embeddings()
    activations = 5e8 + 4 * embedding.weight.shape[0] * 2048
    memory = dense.total * width * (1 if config.is_dense else 2) + activations
    return Estimate(seconds, memory, disk, round(kept), is_lower_bound)


def _needs_calibration(method: str) -> bool:
    from prunebench.methods.registry import get_pruner

    return get_pruner(method).needs_calibration


def plan_table(config: GridConfig, cells: Sequence[PlannedCell], out: Path) -> str:
    """The table of `plan`: id, title, parameters, time, memory, and whether the cell is done already."""
    speed = measure_speed()
    rows: list[tuple[Any, ...]] = []
    total, unknown_count, unbounded, disk = 0.0, 0, 0, 0.0
    for cell in cells:
        cost = estimate(cell, speed)
        is_done = finished_record(CellFolder(out, cell.id)) is not None
        if not is_done:
            unbounded += cost.is_lower_bound
            total += cost.seconds or 0.0
            disk += cost.disk_bytes or 0.0
            unknown_count += cost.seconds is None
        time_text = "?" if cost.seconds is None else ("over " if cost.is_lower_bound else "") + duration(cost.seconds)
        rows.append(
            (
                cell.id,
                cell.title,
                "?" if cost.params is None else millions(cost.params),
                "done" if is_done else time_text,
                gigabytes(cost.memory_bytes),
            )
        )
    head = ("cell", "", "params", "time", "memory")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
    workers = config.run.workers if config.run.executor in ("processes", "slurm") else 1
    summary = f"{len(cells)} cells, about {duration(total / workers)} and {gigabytes(disk)} of disk to go"
    if workers > 1:
        summary += f" with {workers} workers"
    if unbounded:
        summary += f"; {unbounded} cells train on all of their text, which takes longer"
    if unknown_count:
        summary += f"; {unknown_count} cells of unknown cost, since their model isn't here yet"
    return "\n".join([*lines, "", summary])
