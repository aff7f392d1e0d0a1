"""Small records for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.leaderboard.record import (
    Estimate,
    LayerShape,
    Metrics,
    ProtocolScore,
    Record,
    RunBlock,
    StageCost,
    TaskScore,
    cell_dir,
    write_record,
)

HITS = [1, 0, 1, 1, 0, 1, 1, 0, 0, 1]
HOSTILE = [
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "x" * 10_000,
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "a|b\nc\td\x00\x1b[31m",
    "{{ 7*7 }} {% raw %} ${x} \\input{evil}",
    "$a_b^c$ & 50% #1 ~",
    "\ud800 lone",
    "名前 🦙",
]
LAYER = LayerShape(layer=0, kv_groups_kept=1, kv_groups_total=2, q_heads_kept=2, q_heads_total=4, ffn_kept=5, ffn_total=8)


def task(name: str, hits: Sequence[int], chance: float = 0.25, **more: Any) -> TaskScore:
    values = np.asarray(hits, dtype=float)
    n, value = len(values), float(values.mean())
    stderr = float(np.sqrt(value * (1 - value) / max(n - 1, 1)))
    about: dict[str, Any] = {"metric": "acc", "value": value, "stderr": stderr, "n": n, "chance": chance, "source_hash": "h"}
    return TaskScore(task=name, **{**about, "samples_file": f"samples/suite__{name}.parquet", **more})


def suite(tasks: Sequence[TaskScore], name: str = "suite") -> ProtocolScore:
    mean = sum(t.value for t in tasks) / len(tasks)
    stderr = float(np.sqrt(sum((t.stderr or 0) ** 2 for t in tasks))) / len(tasks)
    chance = sum(t.chance or 0 for t in tasks) / len(tasks)
    estimate = Estimate(value=mean, stderr=stderr)
    return ProtocolScore(protocol=name, version="1", definition="mean of tasks", tasks=list(tasks), mean=estimate, chance=chance)


def record(
    method: str = "random",
    sparsity: float | None = 0.2,
    seed: int = 0,
    scores: Sequence[ProtocolScore] = (),
    **run: Any,
) -> Record:
    name = f"{method}-{sparsity}-{seed}-{run.get('model', 'm')}-{run.get('recovery', 'none')}".replace("/", "_")
    about = {"model": "m", "status": "done", "cell_id": name, "config": {"method": method, "seed": seed}, **run}
    metrics = Metrics(
        params_total=100_000_000,
        params_blocks=80_000_000,
        dense_params_total=125_000_000,
        dense_params_blocks=105_000_000,
        achieved_sparsity_total=sparsity or 0.0,
        achieved_sparsity_blocks=sparsity or 0.0,
        shapes=[
            LayerShape(layer=i, kv_groups_kept=1, kv_groups_total=2, q_heads_kept=2, q_heads_total=4, ffn_kept=5, ffn_total=8)
            for i in range(2)
        ],
        scores=list(scores),
    )
    return Record(run=RunBlock(method=method, sparsity=sparsity, seed=seed, **about), metrics=metrics)


def put(out: Path, made: Record, outcomes: dict[str, Sequence[float]] | None = None, items: Sequence[str] | None = None) -> Record:
    """Write the record and its outcomes per item."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_record(out, made)
    for name, hits in (outcomes or {}).items():
        folder = cell_dir(out, made.run.cell_id) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        ids = list(items) if items is not None else [f"i{k}" for k in range(len(hits))]
        pq.write_table(pa.table({"item_id": ids, "acc": [float(h) for h in hits]}), folder / f"suite__{name}.parquet")
    return made


def put_scored(out: Path, method: str, outcomes: dict[str, Sequence[int]], **about: Any) -> Record:
    """A finished cell whose scores are those of `outcomes`."""
    made = record(method, scores=[suite([task(name, hits) for name, hits in outcomes.items()])], **about)
    return put(out, made, {name: list(hits) for name, hits in outcomes.items()})


def put_losses(out: Path, method: str, losses: Sequence[float], *, tokens: float = 100.0, name: str = "ppl", **about: Any) -> Record:
    """A finished cell with the perplexity of so many blocks of `tokens` tokens, from the mean loss of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = np.asarray(losses, dtype=float)
    value, n = float(np.exp(values.mean())), len(values)
    stderr = value * float(values.std(ddof=1)) / np.sqrt(n) if n > 1 else None
    score = TaskScore(
        task="text", metric="token_perplexity", value=value, stderr=stderr, n=n, higher_is_better=False, samples_file="samples/text.parquet"
    )
    made = record(method, scores=[ProtocolScore(protocol=name, tasks=[score])], **about)
    write_record(out, made)
    folder = cell_dir(out, made.run.cell_id) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"b{k}" for k in range(n)]
    pq.write_table(pa.table({"item_id": ids, "token_perplexity": -values * tokens, "weight": [tokens] * n}), folder / "text.parquet")
    return made


TRAINED = [StageCost(name="prune", training_tokens=300_000)]
"""Stages of a method that trains while it prunes."""
