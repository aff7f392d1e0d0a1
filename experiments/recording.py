"""From the stamps of a cell's stages to its record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.hashing import seed_for
from prunebench.experiments.job import Job
from prunebench.experiments.provenance import machine
from prunebench.leaderboard.record import (
    EfficiencyScore,
    LayerShape,
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
    metrics = _known_metrics(job.cell, stamps)
    evaluated = stamps["evaluate"]["result"]
    metrics.scores = [ProtocolScore.from_result(score) for score in evaluated["scores"]]
    if "efficiency" in stamps:
        metrics.efficiency = EfficiencyScore.from_result(stamps["efficiency"]["result"]["efficiency"])
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
        metrics=_known_metrics(job.cell, stamps),
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
        stages=[stage_cost(name, stamp, cell) for name, stamp in stamps.items()],
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def stage_cost(name: str, stamp: dict[str, Any], cell: CellConfig) -> StageCost:
    """What a stage cost, with the tokens that it trained on and the calibration tokens that it was given.

    A method that trains while it prunes logs its running count as `tokens_seen`; where it logs none, the count is not known.
    """
    cost, result = StageCost(name=name, **stamp["cost"]), stamp["result"]
    if name == "recover":
        cost.training_tokens = result.get("tokens")
    elif name == "prune":
        seen = result.get("curves", {}).get("tokens_seen")
        settings = get_pruner(cell.method).Config.model_validate(cell.method_config)
        trains = get_pruner(cell.method)(settings).training_tokens() != 0
        cost.training_tokens = int(seen[-1][1]) if seen else None if trains else 0
        drawn = any(part.get("purpose") == "calibration" for part in result.get("data", []))
        cost.calibration_tokens = cell.calibration.num_samples * cell.calibration.seq_len if drawn and cell.calibration else 0
    return cost


def _known_metrics(cell: CellConfig, stamps: Stamps) -> Metrics:
    metrics = Metrics()
    sizes = stamps.get("evaluate" if cell.is_dense else "prune", {}).get("result")
    if sizes is None:
        return metrics
    kept = sizes.get("kept", sizes["dense"])
    achieved = sizes.get("achieved", {"total": 0.0, "blocks": 0.0})
    metrics.params_total, metrics.params_blocks = kept["total"], kept["blocks"]
    metrics.dense_params_total, metrics.dense_params_blocks = sizes["dense"]["total"], sizes["dense"]["blocks"]
    metrics.achieved_sparsity_total, metrics.achieved_sparsity_blocks = achieved["total"], achieved["blocks"]
    metrics.shapes = [LayerShape(**shape) for shape in sizes["shapes"]]
    metrics.hidden_kept, metrics.hidden_total = sizes["hidden"]
    metrics.disk_bytes = stamps.get("recover", stamps.get("slice", {"result": sizes}))["result"].get("disk_bytes")
    for stage in ("prune", "recover"):
        for name, points in stamps.get(stage, {}).get("result", {}).get("curves", {}).items():
            metrics.curves[f"{stage}: {name}"] = [(float(step), float(value)) for step, value in points]
    return metrics


def _provenance(job: Job, stamps: Stamps) -> Provenance:
    cell = job.cell
    results = [stamp["result"] for stamp in stamps.values()]
    identity: dict[str, Any] = next((result["identity"] for result in results if result.get("identity")), {})
    seeds = {purpose: seed_for(cell.seed, purpose) for purpose in ("calibration", "prune", "recover")} if not cell.is_dense else {}
    seeds |= {f"evaluate {protocol.name}": protocol.seed for protocol in cell.protocols}
    masks = stamps.get("prune", {}).get("result", {}).get("masks_sha256")
    zeros = stamps.get("prune", {}).get("result", {}).get("unstructured_zeros")
    return Provenance(
        extra={} if zeros is None else {"unstructured_zeros_fraction_of_blocks": zeros},
        model=dict(identity),
        data=[entry for result in results for entry in result.get("data", [])],
        seeds=seeds,
        masks_sha256=masks,
        **machine(),
    )
