"""Runs grids into one folder and writes their table into a page under docs/findings/.

    python benchmarks/findings.py configs/oneshot.yaml configs/oneshot_variants.yaml --data DIR --page docs/findings/oneshot.md
    python benchmarks/findings.py configs/compresso/main.yaml --data DIR --page docs/findings/compresso.md --against 'llm_pruner + lora'

The page keeps its prose; what stands between the lines `<!-- table -->` and `<!-- end of table -->` is replaced. Cells that are
done are not run again, so the command goes on where it was stopped; `--no-run` only writes the table of what is there. Done
cells are kept in records/ beside the page (benchmarks/kept_records.py) and need not be run again elsewhere either. Of a folder
that holds more, only the cells of these grids are shown. Of methods that learn their masks, tables and figures
(figures/NAME OF THE PAGE-schedule.png and -layers.png beside the page) show how sparsity kept to its schedule and where it cut.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kept_records import keep, restore
from benchmarks.layer_sparsity import by_layer, layer_figure, layer_table
from benchmarks.mask_schedule import learnt, schedule_figure, schedule_table
from prunebench.experiments.load_config import load_config
from prunebench.experiments.plan import plan_grid
from prunebench.leaderboard.collect import Entry, collect
from prunebench.leaderboard.compare import compare, compare_pairs
from prunebench.leaderboard.exports import as_markdown
from prunebench.leaderboard.pairs import difference_cell
from prunebench.leaderboard.record import read_records
from prunebench.leaderboard.tables import Cell, Column, leaderboard, suite_ids

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COST = ("prune_tokens", "recover_tokens", "prune_seconds", "prune_peak")


def run_grids(options: argparse.Namespace) -> None:
    """Runs every grid into one folder.

    Raises:
        SystemExit: a grid was refused or stopped; its own message is on the screen. A failed cell is a row of the table.
    """
    for config in options.configs:
        command = [sys.executable, str(ROOT / "run_all.py"), "run", "--config", str(config), "--data", str(options.data)]
        command += ["--out", str(options.out), "--no-report", "--plain"]
        for setting in options.settings:
            command += ["--set", setting]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1):
            raise SystemExit(code)


def cells_of(options: argparse.Namespace) -> set[str]:
    """Ids of every cell of the grids."""
    grids = [load_config(config, options.settings) for config in options.configs]
    return {cell.id for grid in grids for cell in plan_grid(grid, options.data)}


def table(out: Path, wanted_cells: set[str], against: str | None, page: Path, shows_tasks: bool = False) -> str:
    """Markdown: what was measured and how, one row a setting, paired differences from `against` at each sparsity, schedules.

    Args:
        shows_tasks: also the score of each task where there is a chance level.

    Raises:
        SystemExit: there is no record to show.
    """
    records, problems = read_records(out)
    for problem in problems:
        print(problem.message, file=sys.stderr)
    entries, _ = collect([record for record in records if record.run.cell_id in wanted_cells])
    if not entries:
        raise SystemExit(f"{out} holds no record of these grids; run without --no-run first.")
    whole = leaderboard(entries, compare(entries, out))
    wanted = ["method", "sparsity", "recovery"]
    wanted += [f"{suite}|{part}" for suite in suite_ids(entries) for part in ("mean", "retention")] + list(COST) + ["status"]
    columns = [column for key in wanted for column in whole.columns if column.key == key]
    parts = by_task(entries) if shows_tasks else []
    parts += [*gains(entries, out), *differences(entries, out, against), *held_out(entries)]
    parts += [*schedules(entries, page), *layers(entries, against, page)]
    return "\n".join([*definitions(entries), "", as_markdown(columns, whole.rows), *parts])


def by_task(entries: list[Entry]) -> list[str]:
    """Every task of each suite of tasks with a chance level, and the mean over those on which the dense model is above it."""
    lines: list[str] = []
    for suite_id in suite_ids(entries):
        found = [entry for entry in entries if suite_id in entry.suites]
        dense = next((entry for entry in found if entry.is_dense), None)
        if dense is None:
            continue
        tasks = dense.suites[suite_id].tasks
        able = [name for name, score in tasks.items() if score.chance is not None and not score.is_at_chance]
        if not able:
            continue
        columns = [Column(key, key, "always", "", False) for key in ("setting", "sparsity", *tasks, "mean of these", "of dense")]
        rows = []
        for entry in found:
            scores = {name: score.value for name, score in entry.suites[suite_id].tasks.items()}
            mean = sum(scores[name] for name in able) / len(able)
            of_dense = mean * len(able) / sum(tasks[name].value for name in able)
            words = [entry.full_label, "" if entry.is_dense else f"{entry.sparsity:.0%}", *(f"{100 * scores[name]:.1f}" for name in tasks)]
            words += [f"{100 * mean:.1f}", f"{of_dense:.0%}"]
            rows.append({column.key: Cell(None, word) for column, word in zip(columns, words, strict=True)})
        head = f'`{suite_id}` by task, in %; "these" are the tasks on which the dense model is above chance: {", ".join(able)}.'
        lines += ["", head, "", as_markdown(columns, rows)]
    return [*lines, ""]


def held_out(entries: list[Entry]) -> list[str]:
    """Mean loss on held-out training text, of the pruned model before and after its last training."""
    keys = ("setting", "sparsity", "seed", "pruned", "and trained")
    rows = []
    for entry in entries:
        for record in entry.done:
            losses = next((points for name, points in record.metrics.curves.items() if name.endswith("validation_loss")), [])
            if len(losses) > 1:
                words = (entry.full_label, f"{entry.sparsity:.0%}", str(record.run.seed), f"{losses[0][1]:.3f}", f"{losses[-1][1]:.3f}")
                rows.append({key: Cell(None, word) for key, word in zip(keys, words, strict=True)})
    if not rows:
        return []
    head = "Loss in nats a label token on examples held out of the training text, before and after the fine-tuning or recovery:"
    return ["", head, "", as_markdown([Column(key, key, "always", "", False) for key in keys], rows)]


def schedules(entries: list[Entry], page: Path) -> list[str]:
    """How learnt masks kept to their schedule; the figure is written beside the page."""
    runs = learnt(entries)
    if not runs:
        return []
    figure = Path("figures", f"{page.stem}-schedule.png")
    schedule_figure(runs, page.parent / figure)
    head = "How sparsity kept to its schedule (fractions of the budget's basis; lag and lead are distances below and above the target):"
    return ["", head, "", schedule_table(runs), "", f"![Target, expected and realised sparsity at every step]({figure.as_posix()})"]


def layers(entries: list[Entry], against: str | None, page: Path) -> list[str]:
    """Where learnt masks cut, beside the other methods of the grids; the figure is written beside the page.

    A recovery changes no masks: what was cut alike stands there once.
    """
    if not learnt(entries):
        return []
    cut: dict[tuple[object, ...], Entry] = {}
    for entry in entries:
        if entry.done and not entry.is_dense:
            cut.setdefault((entry.method, entry.sparsity, *(tuple(by_layer(record)) for record in entry.done)), entry)
    figure = Path("figures", f"{page.stem}-layers.png")
    layer_figure(list(cut.values()), page.parent / figure)
    head = "What was removed, of KV groups, of channels, and of the layers' units (mean of query heads and channels) by depth; then the"
    head += " mean absolute difference of a layer's sparsity between two seeds of the setting"
    head += f", and from `{against}` with the same seed:" if against else ":"
    return ["", head, "", layer_table(list(cut.values()), against), "", f"![Sparsity of every layer]({figure.as_posix()})"]


def definitions(entries: list[Entry]) -> list[str]:
    """What each suite is, on how many items; ± is half of the 95 % interval."""
    lines = ["Beside a score, ± is half of the 95 % interval (over items; over seeds too where there are several).", ""]
    found: dict[str, list[str]] = {}
    for suite_id in suite_ids(entries):
        suite = next(entry.suites[suite_id] for entry in entries if suite_id in entry.suites)
        text = suite.definition or (suite.mean.definition if suite.mean else "")
        found.setdefault(f"- `{suite.protocol}`: {text}", []).extend(f"{name} {score.n}" for name, score in suite.tasks.items())
    return lines + [f"{text} Items: {', '.join(counts)}." for text, counts in found.items()]


def differences(entries: list[Entry], out: Path, against: str | None) -> list[str]:
    """Paired differences of every other setting from those of the method `against`, Holm-corrected within a suite and sparsity."""
    if against is None:
        return []
    references = [entry for entry in entries if entry.full_label == against]
    if not references:
        known = ", ".join(sorted({entry.full_label for entry in entries if not entry.is_dense}))
        raise SystemExit(f"--against {against!r} names no row; the rows are: {known}.")
    wanted = []
    for reference in references:
        same = (e for e in entries if e.sparsity == reference.sparsity and e.model == reference.model)
        wanted += [(other, reference) for other in same if other is not reference and other.done]
    head = f"Each setting minus `{against}` (perplexities: divided by it), with the 95 % interval, on the same items:"
    return [head, "", pairs_table(wanted, entries, out)]


def gains(entries: list[Entry], out: Path) -> list[str]:
    """Paired differences between every recovered setting and the same one without recovery."""

    def pruned_as(entry: Entry) -> str:
        run = entry.records[0].run
        return json.dumps([run.model, run.method, run.config.get("method_config"), run.sparsity, run.basis], sort_keys=True)

    plain = {pruned_as(entry): entry for entry in entries if entry.recovery == "none" and not entry.is_dense}
    recovered = [entry for entry in entries if entry.recovery != "none"]
    wanted = [(entry, plain[pruned_as(entry)]) for entry in recovered if pruned_as(entry) in plain]
    if not wanted:
        return []
    head = "What recovery gave: recovered minus not (perplexities: divided), with the 95 % interval, on the same items:"
    return [head, "", pairs_table(wanted, entries, out), ""]


def pairs_table(wanted: list[tuple[Entry, Entry]], entries: list[Entry], out: Path) -> str:
    """One row a pair and suite; Holm-corrected within a suite and sparsity."""
    columns = [Column(key, key, "always", "", False) for key in ("setting", "sparsity", "suite", "difference", "Holm p")]
    rows = []
    for sparsity in sorted({a.sparsity or 0.0 for a, _ in wanted}):
        for suite_id in suite_ids(entries):
            for pair in compare_pairs([(a, b) for a, b in wanted if a.sparsity == sparsity], suite_id, out):
                words = (pair.a.full_label, f"{sparsity:.0%}", suite_id, difference_cell(pair).full, f"{pair.holm_p:.2g}")
                rows.append({column.key: Cell(None, word) for column, word in zip(columns, words, strict=True)})
    return as_markdown(columns, rows)


def around_table(page: Path) -> tuple[str, str]:
    """What stands before and after the table of a page; of a new page where there is none.

    Raises:
        SystemExit: the page has no place for the table.
    """
    old = page.read_text(encoding="utf-8") if page.exists() else f"# {page.stem}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no lines {BEGIN!r} and {END!r}; put them where the table belongs.")
    return before, after


def write_page(page: Path, text: str, command: str) -> None:
    """Replaces the table of the page; raises as `around_table`."""
    before, after = around_table(page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{BEGIN}\nMade by `{command}`; don't edit.\n\n{text.rstrip()}\n{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="grids, run one after the other")
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmark data")
    parser.add_argument("--page", type=Path, required=True, help="Markdown page whose table is written")
    parser.add_argument("--out", type=Path, help="output folder; default results/NAME OF THE PAGE")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="over every grid; repeatable")
    parser.add_argument("--against", metavar="ROW", help="method (and settings) from which all others are told apart")
    parser.add_argument("--tasks", action="store_true", help="show every task that has a chance level too")
    parser.add_argument("--no-run", action="store_true", help="only write the table of the records that are there")
    options = parser.parse_args()
    options.out = options.out or ROOT / "results" / options.page.stem
    around_table(options.page)  # before hours of running
    cells, records = cells_of(options), options.page.parent / "records"
    restore(records, options.out, cells)
    if not options.no_run:
        run_grids(options)
    keep(options.out, records, cells)
    command = f"python benchmarks/findings.py {' '.join(map(str, options.configs))} --data DIR --page {options.page}"
    command += "".join(f" --set {shlex.quote(setting)}" for setting in options.settings)
    command += f" --against {shlex.quote(options.against)}" if options.against else ""
    command += " --tasks" * options.tasks
    write_page(options.page, table(options.out, cells, options.against, options.page, options.tasks), command)
    print(options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
