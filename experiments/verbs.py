"""What each verb of the command line does."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunebench.experiments.artifacts import prepare_output_folder
from prunebench.experiments.cleaning import clean_cells
from prunebench.experiments.cli import axis_settings, reproducing_command
from prunebench.experiments.config import GridConfig
from prunebench.experiments.estimate import plan_table
from prunebench.experiments.executors import make_executor
from prunebench.experiments.exporting import export_checkpoint
from prunebench.experiments.load_config import load_config
from prunebench.experiments.plan import PlannedCell, plan_grid, select
from prunebench.experiments.progress import make_view
from prunebench.experiments.prompt import prompt_of
from prunebench.experiments.reporting import build_page
from prunebench.experiments.run_grid import GridResult, check_feasible, fetch_models, make_jobs, run_grid
from prunebench.experiments.status import status_table
from prunebench.experiments.stopping import Stop, stop_on_signals
from prunebench.experiments.suggest import unknown
from prunebench.experiments.worker import load_plugins
from prunebench.models.errors import BadInput


@dataclass
class Request:
    """A command line, understood."""

    config: GridConfig
    cells: list[PlannedCell]
    out: Path
    plugins: list[Path]
    data: Path | None
    command: str


def understand(options: argparse.Namespace, *, needs_protocols: bool = True) -> Request:
    """Loads plugins and config and plans the grid; writes nothing.

    Raises:
        BadInput: whatever is wrong with any of them.
    """
    load_plugins(tuple(str(path) for path in options.plugin))
    config = load_config(options.config, [*options.settings, *axis_settings(options)])
    cells = select(plan_grid(config, options.data, needs_protocols=needs_protocols), options.only)
    return Request(config, cells, output_folder(options, config), options.plugin, options.data, reproducing_command(options))


def output_folder(options: argparse.Namespace, config: GridConfig) -> Path:
    if options.out is not None:
        return Path(options.out)
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.name).strip(".") or "unnamed"
    return Path("results") / safe


def run(options: argparse.Namespace) -> int:
    request = understand(options)
    result = _run_cells(options, request, "record")
    if not options.no_report and not result.was_stopped and result.output_error is None:
        print(f"page: {build_page(request.out, options.build_report)}")
    return result.exit_code


def prune(options: argparse.Namespace) -> int:
    request = understand(options, needs_protocols=False)
    request.cells = [cell for cell in request.cells if not cell.config.is_dense]
    if not request.cells:
        raise BadInput("there is nothing to prune: name a method and a sparsity, for example --method magnitude --sparsity 0.2.")
    result = _run_cells(options, request, "prune")
    for cell in request.cells:
        if result.statuses.get(cell.id) in ("pruned", "done"):
            print(f"{cell.title}: {request.out / 'cells' / cell.id}")
    return result.exit_code


def evaluate(options: argparse.Namespace) -> int:
    if options.config is None:
        return _evaluate_model(options)
    request = understand(options)
    result = _run_cells(options, request, "record", needs_checkpoint=True)
    return result.exit_code


def _evaluate_model(options: argparse.Namespace) -> int:
    """Scores one model that need not be of any grid, and prints the table."""
    from prunebench import evaluation
    from prunebench.models.loading import ModelSpec, load_model

    if options.model is None:
        raise BadInput("evaluate needs --config FILE (cells of a grid) or --model NAME (any checkpoint).")
    if not options.protocol:
        raise BadInput(f"--protocol is missing; known protocols: {', '.join(sorted(evaluation.known_protocols()))}.")
    for name in options.protocol:
        evaluation.get_protocol(name)
    config = load_config(None, [*options.settings, *axis_settings(options)])
    spec: ModelSpec = config.grid.model[0]
    prompt = prompt_of(config.evaluation.prompt)
    if options.out is not None:
        prepare_output_folder(options.out)
    stop = Stop()
    view = make_view(options.plain)
    view.start({"model": spec.name}, 0)
    view.event({"kind": "stage", "cell": "model", "stage": "evaluate"})

    def progress(label: str, done: int, total: int) -> None:
        view.event({"kind": "progress", "cell": "model", "label": label, "done": done, "total": total})
        if stop.is_asked:
            raise KeyboardInterrupt

    try:
        with stop_on_signals(stop):
            loaded = load_model(spec)
            results = evaluation.evaluate(
                loaded.model,
                loaded.tokenizer,
                list(config.protocols),
                data_dir=options.data,
                limit=config.evaluation.limit,
                seed=config.evaluation.seed,
                prompt=prompt,
                bos=config.evaluation.bos,
                chat_template=config.evaluation.chat_template,
                system=config.evaluation.system,
                out_dir=options.out,
                token_budget=config.run.token_budget,
                progress=progress,
            )
    finally:
        view.close()
    print(evaluation.format_table(results))
    return 0


def _run_cells(
    options: argparse.Namespace, request: Request, until: Literal["prune", "record"], *, needs_checkpoint: bool = False
) -> GridResult:
    check_feasible(request.cells)
    fetch_models(request.cells)
    executor = make_executor(request.config.run)
    prepare_output_folder(request.out)
    jobs = make_jobs(
        request.config,
        request.cells,
        request.out,
        data_dir=request.data,
        plugins=request.plugins,
        command=request.command,
        until=until,
        needs_checkpoint=needs_checkpoint,
    )
    stop = Stop()
    titles = {cell.id: cell.title for cell in request.cells}
    with stop_on_signals(stop):
        result = run_grid(executor, jobs, titles, request.out, make_view(options.plain), stop, retry=not options.no_retry)
    print(f"{request.out}: {result.text()}")
    if result.output_error is not None:
        print(f"error: {result.output_error}", file=sys.stderr)
    elif result.was_stopped:
        print("stopped; nothing that was finished is lost. The same command goes on from there.", file=sys.stderr)
    return result


def plan(options: argparse.Namespace) -> int:
    request = understand(options)
    check_feasible(request.cells)
    print(plan_table(request.config, request.cells, request.out))
    return 0


def status(options: argparse.Namespace) -> int:
    request = understand(options)
    print(status_table(request.cells, request.out))
    return 0


def report(options: argparse.Namespace) -> int:
    if options.out is None and options.config is None:
        raise BadInput("report needs --out DIR, the folder that a run wrote to, or --config FILE.")
    out = options.out if options.out is not None else output_folder(options, load_config(options.config, options.settings))
    if not out.is_dir():
        raise BadInput(f"output folder {out} does not exist; give the folder that a run wrote to.")
    print(f"page: {build_page(out, options.build_report)}")
    return 0


def export(options: argparse.Namespace) -> int:
    request = understand(options, needs_protocols=False)
    if len(request.cells) != 1:
        raise BadInput(f"export takes one cell, these options name {len(request.cells)}; pick one with --only ID.")
    print(f"checkpoint: {export_checkpoint(request.cells[0], request.out, options.to)}")
    return 0


def validate(options: argparse.Namespace) -> int:
    from prunebench.methods.registry import known_pruners

    request = understand(options)
    check_feasible(request.cells)
    print(f"ok: {len(request.cells)} cells")
    for cell in request.cells:
        print(f"  {cell.id}  {cell.title}")
    print("methods:")
    for info in known_pruners().values():
        print(f"  {info.name}: {info.origin}")
    return 0


def clean(options: argparse.Namespace) -> int:
    request = understand(options, needs_protocols=False)
    print(clean_cells(request.cells, request.out, checkpoints=options.checkpoints, everything=options.everything))
    return 0


def conformance(options: argparse.Namespace) -> int:
    from prunebench.methods.conformance import check_pruner
    from prunebench.methods.registry import get_pruner
    from prunebench.models.tiny import FAMILIES

    load_plugins(tuple(str(path) for path in options.plugin))
    is_file = options.pruner.endswith(".py") or Path(options.pruner).is_file()
    names = load_plugins((options.pruner,)) if is_file else [options.pruner]
    for family in options.family:
        if family not in FAMILIES:
            raise unknown("architecture", family, FAMILIES)
    broken = 0
    for name in names:
        findings: list[Any] = check_pruner(get_pruner(name), None, tuple(options.family or FAMILIES))
        for finding in findings:
            if finding.status != "kept":
                print(f"{name} on {finding.family}: {finding.promise}: {finding.status}: {finding.message}")
        counts = {status: sum(f.status == status for f in findings) for status in ("kept", "skipped", "broken")}
        print(f"{name}: {counts['kept']} promises kept, {counts['skipped']} skipped, {counts['broken']} broken")
        broken += counts["broken"]
    return 1 if broken else 0
