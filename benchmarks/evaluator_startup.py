"""What an evaluation costs before its first forward pass, and how fast MMLU's 5-shot requests are built.

    python benchmarks/evaluator_startup.py --data DIR

Start-up: a new process that imports, loads the model from the cache and builds the requests of PIQA and ARC-easy. Bounds:
10 s, and 1,000 documents a second over all of MMLU's test split. Processor time is shown beside wall time, since other work on
the machine counts in the second only. Exit code 1 over a bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

START = """
import sys
from pathlib import Path
from prunebench.evaluation import harness
from prunebench.evaluation.catalogue import known_tasks
from prunebench.evaluation.engine.engine import Engine
from prunebench.evaluation.sources import load_task_data
from prunebench.models.loading import ModelSpec, load_model
loaded = load_model(ModelSpec(name=sys.argv[1]))
Engine(loaded.model, loaded.tokenizer)
data = Path(sys.argv[2]) if sys.argv[2] else None
for name in ("piqa", "arc_easy"):
    rows = load_task_data(known_tasks()[name], "", ("data-dir", "embedded"), data, 0)
    harness.build_requests(harness.build_task(known_tasks()[name], "", 0, rows.rows, rows.fewshot))
"""


def start_up(model: str, data: Path | None) -> dict[str, float]:
    started, cpu = time.monotonic(), children_seconds()
    subprocess.run([sys.executable, "-c", START, model, str(data or "")], check=True, cwd=ROOT)
    return {"start_seconds": time.monotonic() - started, "start_cpu_seconds": children_seconds() - cpu}


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def mmlu_rate(data: Path | None) -> dict[str, Any]:
    """Documents a second, from rows that are read to requests, over every subject."""
    from prunebench.evaluation import harness
    from prunebench.evaluation.catalogue import known_tasks
    from prunebench.evaluation.sources import load_task_data

    task = known_tasks()["mmlu"]
    found = [(stratum, load_task_data(task, stratum, ("data-dir", "embedded"), data, 5)) for stratum in task.all_strata]
    harness.build_requests(harness.build_task(task, found[0][0], 5, found[0][1].rows, found[0][1].fewshot))  # imports
    started, cpu = time.monotonic(), time.process_time()
    documents = sum(len(harness.build_requests(harness.build_task(task, stratum, 5, rows.rows, rows.fewshot))) for stratum, rows in found)
    spent, busy = time.monotonic() - started, time.process_time() - cpu
    return {
        "mmlu_documents": documents,
        "mmlu_documents_per_second": documents / spent,
        "mmlu_documents_per_cpu_second": documents / busy,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="starts; the fastest counts")
    arguments = parser.parse_args()
    starts = [start_up(arguments.model, arguments.data) for _ in range(arguments.rounds)]
    result = min(starts, key=lambda one: one["start_seconds"]) | mmlu_rate(arguments.data)
    print(json.dumps(result, indent=2))
    is_within = result["start_seconds"] < 10 and result["mmlu_documents_per_second"] >= 1000
    print("within both bounds" if is_within else "over a bound", file=sys.stderr)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
