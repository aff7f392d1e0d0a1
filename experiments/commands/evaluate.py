"""`evaluate`: the second half of the cells; or, with --model, the scores of any checkpoint."""

from __future__ import annotations

from prunebench.experiments.commands.options import RunningCells
from prunebench.experiments.commands.request import understand
from prunebench.experiments.commands.run import run_cells
from prunebench.models.errors import BadInput


def evaluate(cells: RunningCells) -> int:
    """Takes the second half of the cells; or, with --model, scores any checkpoint and prints a table."""
    if cells.config is None:
        return evaluate_model(cells)
    return run_cells(cells, understand(cells), "record", needs_checkpoint=True).exit_code


def evaluate_model(cells: RunningCells) -> int:
    """Scores one model that need not be of any grid, and prints the table."""
    from prunebench import evaluation
    from prunebench.experiments.cell_folder import prepare_output_folder
    from prunebench.experiments.checks.lengths import check_protocol_lengths
    from prunebench.experiments.checks.lookups import check_protocol_data
    from prunebench.experiments.checks.prompt import prompt_of
    from prunebench.experiments.load_config import load_config
    from prunebench.experiments.progress import make_view, quiet_libraries
    from prunebench.experiments.stopping import Stop, stop_on_signals
    from prunebench.models.assets import embedded_data_root
    from prunebench.models.loading import ModelSpec, load_model

    quiet_libraries()

    if cells.model is None:
        raise BadInput("evaluate needs --config FILE (cells of a grid) or --model NAME (any checkpoint).")
    if not cells.protocol:
        raise BadInput(f"--protocol is missing; known protocols: {', '.join(sorted(evaluation.known_protocols()))}.")
    for name in cells.protocol:
        evaluation.get_protocol(name)
    unused = [
        name for name in ("method", "sparsity", "seed", "executor", "workers", "address", "only") if getattr(cells, name) not in (None, [])
    ]
    if unused:
        raise BadInput(f"--{unused[0]} means nothing to evaluate --model, which scores one model as it is; leave it out.")
    config = load_config(None, cells.settings, cells.shorthands())
    spec: ModelSpec = config.grid.model[0]
    prompt = prompt_of(config.evaluation.prompt)
    check_protocol_lengths([choice.name for choice in config.protocols], config.evaluation, prompt, spec)
    found = [check_protocol_data(choice.name, choice.sources, cells.data) for choice in config.protocols]
    if any("embedded" in sources for sources in found):
        embedded_data_root()  # fetched now, not after the model is loaded
    if cells.out is not None:
        prepare_output_folder(cells.out)
    stop = Stop()
    view = make_view(cells.plain)
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
                data_dir=cells.data,
                limit=config.evaluation.limit,
                seed=config.evaluation.seed,
                prompt=prompt,
                bos=config.evaluation.bos,
                chat_template=config.evaluation.chat_template,
                system=config.evaluation.system,
                out_dir=cells.out,
                token_budget=config.run.token_budget,
                progress=progress,
            )
    finally:
        view.close()
    print(evaluation.format_table(results))
    return 0
