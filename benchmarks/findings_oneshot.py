"""Makes docs/findings/oneshot.md: runs configs/oneshot.yaml and configs/oneshot_variants.yaml, then writes the table from the records.

    python benchmarks/findings_oneshot.py --data DIR [--out DIR] [--limit-2048 N --limit-128 N] [--samples 128] [--sparsity 0.2 0.35]

Cells that are done are not run again, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DESCRIPTIONS = {
    ("magnitude", "all"): "magnitude, L2 over all members",
    ("magnitude", "output"): "magnitude, L2 of the last matrix",
    ("llm_pruner", "first"): "llm_pruner, element-wise (Element^1)",
    ("llm_pruner", "vector"): "llm_pruner, vector-wise",
}


def run_grids(options: argparse.Namespace) -> None:
    """Runs both grids into one folder.

    Raises:
        SystemExit: a grid failed; its own message is on the screen.
    """
    common = [sys.executable, str(ROOT / "run_all.py"), "run"]
    common += ["--data", str(options.data), "--out", str(options.out), "--no-report", "--plain"]
    if options.limit_2048 or options.limit_128:
        limits = {"perplexity_2048": options.limit_2048, "perplexity_128": options.limit_128}
        entries = ", ".join(f"{{name: {name}, limit: {limit}}}" if limit else name for name, limit in limits.items())
        common += ["--set", f"protocols=[{entries}]"]
    common += ["--set", f"calibration.num_samples={options.samples}"]
    levels = f"grid.sparsity=[{', '.join(map(str, options.sparsity))}]"
    seeds = ", ".join(f"{{method: random, sparsity: {s}, seed: {n}}}" for s in options.sparsity for n in (1, 2))
    runs = [["--config", str(ROOT / "configs/oneshot.yaml"), "--set", levels, "--set", f"grid.include=[{seeds}]"]]
    runs.append(["--config", str(ROOT / "configs/oneshot_variants.yaml"), "--set", levels])
    for arguments in runs:
        code = subprocess.run([*common, *arguments], check=False).returncode
        if code not in (0, 1):
            raise SystemExit(code)


def label(record: Any) -> str:
    config = record.run.config.get("method_config", {})
    key = config.get("members") if record.run.method == "magnitude" else config.get("importance")
    return DESCRIPTIONS.get((record.run.method, key), record.run.method)


def task_line(task: Any) -> str:
    return f"- `{task.task}`: n = {task.n} of {task.extra.get('n_available', '?')} blocks, split {task.split} ({task.source})"


def task_values(record: Any) -> dict[str, float]:
    return {task.task: task.value for score in record.metrics.scores for task in score.tasks}


def page(records: list[Any], command: str) -> str:
    """The findings page; every number comes from a record."""
    done = [record for record in records if record.run.status == "done"]
    tasks = sorted({task for record in done for task in task_values(record)})
    some = done[0]
    scored = {task.task: task for score in some.metrics.scores for task in score.tasks}
    lines = ["# Training-free methods without recovery", "", f"Made by `{command}`; don't edit.", ""]
    calibration = next(record.run.config["calibration"] for record in done if record.run.method != "dense")
    lines += [
        f"Model {some.run.model}; calibration {calibration['source']}, {calibration['num_samples']} samples of "
        f"{calibration['seq_len']} tokens; sparsity counts the decoder layers' parameters. Token perplexity, lower is better:",
        "",
        *(task_line(scored[task]) for task in tasks),
        "",
        "`random` is the mean of its seeds with their standard deviation; the others draw nothing but the calibration text.",
        "Seconds and peak memory are those of the prune stage on this machine.",
        "",
    ]
    for sparsity in sorted({record.run.sparsity for record in done if record.run.sparsity is not None}):
        lines += [f"## {sparsity:.0%} removed", "", "| method | " + " | ".join(tasks) + " | achieved | seconds | peak GB |"]
        lines.append("|" + " --- |" * (len(tasks) + 4))
        groups: dict[str, list[Any]] = defaultdict(list)
        for record in done:
            if record.run.sparsity in (None, sparsity):
                groups[label(record)].append(record)
        ordered = sorted(groups.items(), key=lambda item: statistics.mean(task_values(record)[tasks[-1]] for record in item[1]))
        lines += [row(name, group, tasks) for name, group in ordered]
        lines.append("")
    for record in records:
        if record.run.status != "done":
            lines.append(f"- {label(record)} at {record.run.sparsity}: {record.run.status}, {record.run.reason}")
    return "\n".join(lines).rstrip() + "\n"


def row(name: str, group: list[Any], tasks: list[str]) -> str:
    cells = []
    for task in tasks:
        values = [task_values(record)[task] for record in group]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{spread}")
    achieved = group[0].metrics.achieved_sparsity_blocks
    stage = next((stage for stage in group[0].run.stages if stage.name == "prune"), None)
    cells.append("" if achieved is None or group[0].run.sparsity is None else f"{achieved:.4f}")
    cells += [f"{stage.seconds:.0f}", f"{stage.peak_memory_bytes / 1e9:.2f}" if stage.peak_memory_bytes else ""] if stage else ["", ""]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmark data")
    parser.add_argument("--out", type=Path, default=ROOT / "results/oneshot")
    parser.add_argument("--to", type=Path, default=ROOT / "docs/findings/oneshot.md")
    parser.add_argument("--limit-2048", type=int, help="blocks of 2048 tokens a task; all without it")
    parser.add_argument("--limit-128", type=int, help="blocks of 128 tokens a task; all without it")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples of 128 tokens")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.35])
    options = parser.parse_args()
    from leaderboard.record import read_records

    run_grids(options)
    records, problems = read_records(options.out)
    for problem in problems:
        print(problem, file=sys.stderr)
    command = "python benchmarks/findings_oneshot.py --data DIR"
    for name, value in (("--limit-2048", options.limit_2048), ("--limit-128", options.limit_128)):
        command += f" {name} {value}" if value else ""
    if options.samples != 128:
        command += f" --samples {options.samples}"
    if options.sparsity != [0.2, 0.35]:
        command += f" --sparsity {' '.join(map(str, options.sparsity))}"
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(page(records, command), encoding="utf-8")
    print(options.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
