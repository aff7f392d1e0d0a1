"""One record in the words of other tools: the results file of lm-eval, and the evaluation block of a model card."""

from __future__ import annotations

import math
from typing import Any

from prunebench.leaderboard import formatting as fmt
from prunebench.leaderboard.record import Record, TaskScore


def lm_eval_results(record: Record) -> dict[str, Any]:
    """The record as lm-eval's results_*.json: metrics by task as `acc,none`, standard errors, shots, numbers of samples.

    A task that two protocols scored has its protocol in its name. Source of the layout: `EvaluationTracker` of lm-eval 0.4.
    """
    tasks = _named(record)
    results: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        found: dict[str, Any] = {"alias": name}
        metrics = {task.metric: (task.value, task.stderr)} | {key: (e.value, e.stderr) for key, e in task.all_metrics.items()}
        for metric, (value, stderr) in metrics.items():
            found[f"{metric},none"] = value if math.isfinite(value) else "N/A"
            found[f"{metric}_stderr,none"] = stderr if stderr is not None and math.isfinite(stderr) else "N/A"
        results[name] = found
    run = record.run
    return {
        "results": results,
        "configs": {
            n: {"task": t.task, "num_fewshot": t.shots, "test_split": t.split, "description": t.definition} for n, t in tasks.items()
        },
        "versions": {name: _version(record, task) for name, task in tasks.items()},
        "n-shot": {name: task.shots for name, task in tasks.items()},
        "higher_is_better": {name: {task.metric: task.higher_is_better} for name, task in tasks.items()},
        "n-samples": {name: {"original": task.extra.get("n_available", task.n), "effective": task.n} for name, task in tasks.items()},
        "config": {"model": "hf", "model_args": f"pretrained={run.model}", "random_seed": run.seed},
        "model_name": f"{run.model} {run.method}" + ("" if run.sparsity is None else f" {run.sparsity:g} of {run.basis}"),
        "date": run.finished_at.timestamp() if run.finished_at else None,
        "git_hash": record.provenance.commit,
        "prunebench": {"cell_id": run.cell_id, "command": run.command, "config": run.config},
    }


def model_card(record: Record) -> str:
    """The `model-index` block of a model card (README.md of a repository on the hub).

    Source of the layout: the hub's documentation of model cards, section on evaluation results.
    """
    import yaml

    run = record.run
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": name, "type": task.task, "split": task.split or "unknown"},
            "metrics": [{"type": task.metric, "value": _shown(task), "name": f"{task.metric}, {task.shots}-shot, n = {task.n}"}],
        }
        for name, task in _named(record).items()
        if math.isfinite(task.value)
    ]
    name = f"{run.model.rstrip('/').rsplit('/', 1)[-1]} {run.method}" + ("" if run.sparsity is None else f" {run.sparsity:g}")
    card = {"model-index": [{"name": name, "results": results}]}
    return f"---\n# prunebench, cell {fmt.clean(run.cell_id)}\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---\n"


def _shown(task: TaskScore) -> float:
    """Shares in percent, as cards have them; to four decimals."""
    is_share = task.higher_is_better and 0 <= task.value <= 1
    return round(100 * task.value if is_share else task.value, 4)


def _named(record: Record) -> dict[str, TaskScore]:
    names = [task.task for score in record.metrics.scores for task in score.tasks]
    return {
        task.task if names.count(task.task) == 1 else f"{score.protocol}_{task.task}": task
        for score in record.metrics.scores
        for task in score.tasks
    }


def _version(record: Record, task: TaskScore) -> str:
    return next(score.version for score in record.metrics.scores if any(t is task for t in score.tasks))
