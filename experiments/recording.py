"""From the stamps of a cell's stages to its record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.hashing import seed_for
from prunebench.experiments.job import Job
from prunebench.experiments.provenance import machine
from prunebench.experiments.results import Results
from prunebench.leaderboard.record import (
    EfficiencyScore,
    Metrics,
    ProtocolScore,
    Provenance,
    Record,
    RunBlock,
    StageCost,
)
from prunebench.methods.registry import get_pruner

Stamps = dict[str, dict[str, Any]]


def build_record(job: Job, stamps: Stamps, started_at: datetime, problems: list[str]) -> Record:
    """The record of a cell that is done."""
    results = Results.of(stamps)
    assert results.evaluate is not None  # the last stage that every cell has
    metrics = _known_metrics(results)
    metrics.scores = [ProtocolScore.from_result(score) for score in results.evaluate.scores]
    if results.efficiency is not None:
        metrics.efficiency = EfficiencyScore.from_result(results.efficiency.efficiency)
    provenance = _provenance(job, stamps)
    sources = {(task.task, task.source, task.source_hash) for score in metrics.scores for task in score.tasks}
    provenance.data += [{"purpose": "evaluation", "task": t, "source": s, "sha256": h} for t, s, h in sorted(sources, key=str)]
    if problems:
        provenance.extra["set_aside"] = problems
    return Record(run=_run(job, "done", "", stamps, started_at), metrics=metrics, provenance=provenance)


def unfinished_record(job: Job, status: str, reason: str, stamps: Stamps, started_at: datetime) -> Record:
    """The record of a cell that was skipped, failed or stopped: what is known, and why there is no more."""
    return Record(
        run=_run(job, status, reason, stamps, started_at),
        metrics=_known_metrics(Results.of(stamps)),
        provenance=_provenance(job, stamps),
    )


def _run(job: Job, status: Any, reason: str, stamps: Stamps, started_at: datetime) -> RunBlock:
    cell = job.cell
    return RunBlock(
        cell_id=cell.id,
        config=cell.model_dump(mode="json"),
        model=cell.model.name,
        method=cell.method,
        sparsity=cell.sparsity,
        basis=cell.basis,
        seed=cell.seed,
        recovery=cell.recovery,
        status=status,
        reason=reason,
        synthetic=cell.synthetic,
        command=job.command,
        stages=[stage_cost(name, stamp["cost"], Results.of(stamps), cell) for name, stamp in stamps.items()],
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def stage_cost(name: str, cost: dict[str, Any], results: Results, cell: CellConfig) -> StageCost:
    """What a stage cost, with the tokens that it trained on and the calibration tokens that it was given.

    A method that trains while it prunes logs its running count as `tokens_seen`; where it logs none, the count is not known.
    """
    told = StageCost(name=name, **cost)
    if name == "recover" and results.recover is not None:
        told.training_tokens = results.recover.tokens
    elif name == "prune" and results.prune is not None:
        settings = get_pruner(cell.method).Config.model_validate(cell.method_config)
        trains = get_pruner(cell.method)(settings).training_tokens() != 0
        seen = results.prune.tokens_seen
        told.training_tokens = seen if seen is not None else None if trains else 0
        drawn = any(part.get("purpose") == "calibration" for part in results.prune.data)
        told.calibration_tokens = cell.calibration.num_samples * cell.calibration.seq_len if drawn and cell.calibration else 0
    return told


def _known_metrics(results: Results) -> Metrics:
    metrics, size = Metrics(), results.size
    if size is None:
        return metrics
    metrics.params_total, metrics.params_blocks = size.kept.total, size.kept.blocks
    metrics.dense_params_total, metrics.dense_params_blocks = size.dense.total, size.dense.blocks
    metrics.achieved_sparsity_total = 1 - size.kept.total / size.dense.total
    if size.kept.blocks is not None and size.dense.blocks is not None:
        metrics.achieved_sparsity_blocks = 1 - size.kept.blocks / size.dense.blocks
    elif size.kept == size.dense:
        metrics.achieved_sparsity_blocks = 0.0
    metrics.shapes = list(size.shapes)
    metrics.hidden_kept, metrics.hidden_total = size.hidden
    metrics.disk_bytes = results.disk_bytes
    for stage, found in (("prune", results.prune), ("recover", results.recover)):
        for name, points in found.curves.items() if found is not None else ():
            metrics.curves[f"{stage}: {name}"] = points
    return metrics


def _provenance(job: Job, stamps: Stamps) -> Provenance:
    cell, results = job.cell, Results.of(stamps)
    seeds = {purpose: seed_for(cell.seed, purpose) for purpose in ("calibration", "prune", "recover")} if not cell.is_dense else {}
    seeds |= {f"evaluate {protocol.name}": protocol.seed for protocol in cell.protocols}
    zeros = results.prune.unstructured_zeros if results.prune else None
    return Provenance(
        extra={} if zeros is None else {"unstructured_zeros_fraction_of_blocks": zeros},
        model=dict(results.identity),
        data=results.data,
        seeds=seeds,
        masks_sha256=results.prune.masks_sha256 if results.prune else None,
        **machine(),
    )
