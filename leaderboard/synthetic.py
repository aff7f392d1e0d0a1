"""Synthetic records, for trying the page and for measuring how it scales. Not results: every record says so.

python -m prunebench.leaderboard.synthetic OUT --records 10000
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from prunebench.leaderboard.record import (
    EfficiencyScore,
    Estimate,
    LayerShape,
    Metrics,
    ProtocolScore,
    Provenance,
    Record,
    RunBlock,
    StageCost,
    Status,
    TaskScore,
    cell_dir,
    write_record,
)

MODELS = ("synthetic-s", "synthetic-m", "synthetic-l", "synthetic-xl")
METHODS = (
    "random",
    "magnitude",
    "wanda_sp",
    "flap",
    "llm_pruner",
    "nuteprune",
    "compresso",
    "short_gpt",
    "slice_gpt",
    "taylor",
    "layer_drop",
    "search",
)
SPARSITIES = (0.2, 0.25, 0.35, 0.5)
RECOVERIES = ("none", "lora")
TASKS = (("piqa", "acc", 0.5), ("arc_easy", "acc", 0.25), ("hellaswag", "acc_norm", 0.25), ("boolq", "acc", 0.5))
TRAINING, TRAINING_TOKENS = ("nuteprune", "compresso"), 300_000
LAYERS, KV_GROUPS, Q_HEADS, FFN = 12, 4, 8, 512
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Setting:
    model: str
    method: str
    sparsity: float | None
    recovery: str
    seed: int


def settings(count: int) -> Iterator[Setting]:
    """`count` distinct settings: the dense models, then seeds 0, 1, ... of the whole grid."""
    dense = [Setting(model, "dense", None, "none", 0) for model in MODELS]

    def grid() -> Iterator[Setting]:
        for seed in itertools.count():
            for model, sparsity, recovery, method in itertools.product(MODELS, SPARSITIES, RECOVERIES, METHODS):
                yield Setting(model, method, sparsity, recovery, seed)

    return itertools.islice(itertools.chain(dense, grid()), count)


def make(out_dir: Path, count: int, *, documents: int = 200, samples: bool = True, seed: int = 0) -> None:
    """Write `count` synthetic records (and outcomes per item) under `out_dir`."""
    make_settings(out_dir, settings(count), documents=documents, samples=samples, seed=seed)


def make_settings(out_dir: Path, wanted: Iterable[Setting], *, documents: int = 200, samples: bool = True, seed: int = 0) -> None:
    """Write one synthetic record for each setting."""
    for record, outcomes in records(wanted, documents=documents, samples=samples, seed=seed):
        write_record(out_dir, record)
        if samples and record.run.status == "done":
            _write_samples(out_dir, record.run.cell_id, outcomes)


def records(
    wanted: Iterable[Setting], *, documents: int = 200, samples: bool = True, seed: int = 0
) -> Iterator[tuple[Record, dict[str, np.ndarray]]]:
    """One synthetic record for each setting, with its outcomes per item."""
    difficulty = {task: np.random.default_rng([seed, i]).random(documents) for i, (task, _, _) in enumerate(TASKS)}
    for index, setting in enumerate(wanted):
        rng = np.random.default_rng([seed, 1, index])
        outcomes = _outcomes(setting, difficulty, rng)
        yield _record(setting, outcomes, rng, index, samples), outcomes


def _skill(setting: Setting) -> float:
    """Between 0 (guessing) and 1: falls with sparsity, less for methods late in the list."""
    skill = 0.45 + 0.08 * MODELS.index(setting.model)
    if setting.sparsity is not None:
        order = METHODS.index(setting.method) / len(METHODS)
        skill *= 1 - setting.sparsity * (1.3 - 0.9 * order)
        skill *= 1.08 if setting.recovery == "lora" else 1.0
    return skill


def _outcomes(setting: Setting, difficulty: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    skill = _skill(setting) + 0.01 * rng.standard_normal()
    found = {}
    for task, _, chance in TASKS:
        items = difficulty[task]
        knows = items < skill
        noisy = rng.random(len(items)) < 0.15
        guess = rng.random(len(items)) < chance
        found[task] = np.where(knows & ~noisy, True, guess).astype(bool)
    return found


def _record(setting: Setting, outcomes: dict[str, np.ndarray], rng: np.random.Generator, index: int, samples: bool) -> Record:
    cell_id = f"synthetic{index:07d}"
    status, reason = _status(setting, index)
    started = START + timedelta(minutes=index)
    config = {"model": {"name": setting.model}, "method": setting.method, "sparsity": setting.sparsity, "synthetic": True}
    run = RunBlock(
        cell_id=cell_id,
        config={**config, "recovery": setting.recovery, "seed": setting.seed},
        model=setting.model,
        method=setting.method,
        sparsity=setting.sparsity,
        seed=setting.seed,
        recovery=setting.recovery,
        status=status,
        reason=reason,
        synthetic=True,
        command=f"python -m prunebench.leaderboard.synthetic OUT --records {index + 1}",
        stages=[
            StageCost(name="prune", seconds=float(2 + 30 * rng.random()), peak_memory_bytes=10**9, **_tokens(setting)),
            *([StageCost(name="recover", seconds=20.0, training_tokens=TRAINING_TOKENS)] if setting.recovery == "lora" else []),
            StageCost(name="evaluate", seconds=float(20 + 5 * rng.random())),
        ],
        started_at=started,
        finished_at=started + timedelta(minutes=1),
    )
    metrics = _metrics(setting, outcomes, rng, samples) if status == "done" else Metrics()
    provenance = Provenance(
        model={"source": "synthetic"}, data=[{"source": "synthetic"}], python="3", platform="synthetic", seeds={"cell": setting.seed}
    )
    return Record(run=run, metrics=metrics, provenance=provenance)


def _tokens(setting: Setting) -> dict[str, int]:
    """What pruning took: of methods that train while they prune as many tokens as a recovery has, without a recovery."""
    trains = setting.method in TRAINING and setting.recovery == "none"
    return {"tokens": 4096, "training_tokens": TRAINING_TOKENS if trains else 0, "calibration_tokens": 4096}


def _status(setting: Setting, index: int) -> tuple[Status, str]:
    if setting.sparsity is not None and index % 97 == 13:
        return "failed", "synthetic failure: NaN in the loss at step 40"
    if setting.sparsity == 0.5 and setting.method == "short_gpt":
        return "skipped", "synthetic skip: whole layers can't meet the budget within 0.5 %"
    return "done", ""


def _metrics(setting: Setting, outcomes: dict[str, np.ndarray], rng: np.random.Generator, samples: bool) -> Metrics:
    kept = 1 - (setting.sparsity or 0.0)
    dense_total = 10**8 * 2 ** MODELS.index(setting.model)
    dense_blocks = int(dense_total * 0.8)
    total = int(dense_total * kept)
    tasks = [_task(task, metric, chance, outcomes[task], samples) for task, metric, chance in TASKS]
    values = [t.value for t in tasks]
    stderr = float(np.sqrt(sum((t.stderr or 0.0) ** 2 for t in tasks))) / len(tasks)
    chance = float(np.mean([t.chance for t in tasks]))
    mean = float(np.mean(values))
    suite = ProtocolScore(
        protocol="commonsense",
        version="1",
        definition="Synthetic outcomes, not a benchmark; unweighted mean of four.",
        tasks=tasks,
        mean=Estimate(value=mean, stderr=stderr),
        chance=chance,
        margin=mean - chance,
    )
    perplexity = float(12 * np.exp(2.5 * (1 - _skill(setting))) * (1 + 0.02 * rng.standard_normal()))
    passages = TaskScore(
        task="passages",
        metric="perplexity",
        value=perplexity,
        stderr=perplexity * 0.02,
        n=200,
        source="synthetic",
        higher_is_better=False,
        definition="synthetic perplexity",
    )
    steps = np.arange(0, 200, 20)
    target = setting.sparsity or 0.0
    curves = {
        "loss": [(float(s), float(3 * np.exp(-s / 80) + 2)) for s in steps],
        "expected_sparsity": [(float(s), float(target * min(1, s / 120))) for s in steps],
        "target_sparsity": [(float(s), float(target * min(1, s / 100))) for s in steps],
    }
    speed = 1 / kept**0.7
    return Metrics(
        params_total=total,
        params_blocks=dense_blocks - (dense_total - total),
        dense_params_total=dense_total,
        dense_params_blocks=dense_blocks,
        achieved_sparsity_total=1 - kept,
        achieved_sparsity_blocks=(dense_total - total) / dense_blocks,
        disk_bytes=total * 2,
        shapes=_shapes(kept, rng),
        hidden_kept=256,
        hidden_total=256,
        scores=[suite, ProtocolScore(protocol="perplexity_passages", version="1", tasks=[passages])],
        efficiency=EfficiencyScore(
            prefill_tokens_per_second=900 * speed,
            decode_tokens_per_second=20 * speed,
            latency_ms=50 / speed,
            macs_per_token=float(total),
            peak_memory_bytes=total * 4,
            repeats=3,
            spread={"latency_ms": 0.02},
        ),
        curves=curves if setting.method in TRAINING else {},
    )


def _task(task: str, metric: str, chance: float, hits: np.ndarray, samples: bool) -> TaskScore:
    n, value = len(hits), float(hits.mean())
    return TaskScore(
        task=task,
        metric=metric,
        value=value,
        stderr=float(np.sqrt(value * (1 - value) / (n - 1))),
        n=n,
        split="synthetic",
        source="synthetic",
        source_hash="synthetic",
        chance=chance,
        definition=f"synthetic {metric}",
        samples_file=f"samples/commonsense__{task}.parquet" if samples else None,
    )


def _shapes(kept: float, rng: np.random.Generator) -> list[LayerShape]:
    shapes = []
    for layer in range(LAYERS):
        share = float(np.clip(kept + 0.15 * rng.standard_normal(), 0.1, 1)) if kept < 1 else 1.0
        groups = max(1, round(share * KV_GROUPS))
        shapes.append(
            LayerShape(
                layer=layer,
                kv_groups_kept=groups,
                kv_groups_total=KV_GROUPS,
                q_heads_kept=groups * Q_HEADS // KV_GROUPS,
                q_heads_total=Q_HEADS,
                ffn_kept=round(share * FFN),
                ffn_total=FFN,
            )
        )
    return shapes


def _write_samples(out_dir: Path, cell_id: str, outcomes: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = cell_dir(out_dir, cell_id) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for task, metric, _ in TASKS:
        hits = outcomes[task]
        table = pa.table({"item_id": [f"{task}-{i}" for i in range(len(hits))], metric: hits})
        pq.write_table(table, folder / f"commonsense__{task}.parquet")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--no-samples", action="store_true")
    args = parser.parse_args(argv)
    make(args.out, args.records, documents=args.documents, samples=not args.no_samples)
    print(f"{args.records} synthetic records in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
