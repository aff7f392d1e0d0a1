"""Makes the table of a question's page, from the kept records and from what its grids still lack.

    python -m findings.build compresso-rank --data DIR      # runs the cells that no kept record answers, then writes the table
    python -m findings.build compresso-rank --no-run        # from the kept records alone; needs no data

The page keeps its prose: what stands between the lines `<!-- table -->` and `<!-- end of table -->` is replaced, and the figures beside
it. A finished cell is kept in findings/records and need not be run again elsewhere; a run that was stopped goes on. Of a cell without
a record the table has a row that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from findings.kept import Kept, settings_of
from findings.question import ROOT, Question, load_question
from findings.tables import LACKING, check_against, settings_in, table
from prunebench.experiments.commands import EXIT_BAD_INPUT
from prunebench.experiments.load_config import load_config, parse_setting
from prunebench.experiments.plan import PlannedCell, plan_grid
from prunebench.leaderboard.errors import LeaderboardError
from prunebench.leaderboard.record import Record, RunBlock, read_record, record_path
from prunebench.models.errors import BadInput, PrunebenchError
from prunebench.run_all import main as run_all

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
OUT = ROOT.parent / "results" / "findings"


def build(question: Question, kept: Kept, out: Path, data: Path | None, settings: Sequence[str] = ()) -> int:
    """Runs what is lacking, keeps what is new, and writes the page.

    Args:
        out: output folder; of one that holds more, only the question's cells are shown.
        data: folder of benchmark data; None runs nothing.
        settings: `run.KEY=VALUE`, how the cells are run.

    Returns:
        0, or the exit code of the grid that was stopped or refused; then the page stays as it is. A failed cell is a row.
    Raises:
        BadInput: no place for the table, an `against` that names no row, a grid or an archive that can't be used.
    """
    around_table(question)
    planned = {grid: plan_grid(load_config(grid), data) for grid in question.grids}
    cells = {cell.id: cell for grid in planned.values() for cell in grid}
    answers = {cell: kept.answering(planned_cell.config, as_it_was=data is None) for cell, planned_cell in cells.items()}
    check_against(question, settings_in([in_todays_words(unmade(cell)) for cell in cells.values()]))
    answered = [answer for answer in answers.values() if answer is not None]
    lacking = [cell for cell, answer in answers.items() if answer is None]
    kept.restore(out, answered)
    if data is None:
        shown = list(dict.fromkeys([*kept.of(question.name), *answered]))
        kept.restore(out, shown)
        missing = [unmade(cells[cell]) for cell in lacking]
    else:
        for grid, own in planned.items():
            code = run(grid, [cell.id for cell in own if cell.id in lacking], out, data, settings)
            if code not in (0, 1):
                return code
        kept.keep(out, lacking)
        shown, missing = [*answered, *lacking], []
        kept.show(question.name, shown)
        kept.write()
    records = [in_todays_words(record) for record in [*(read_record(record_path(out, cell)) for cell in shown), *missing]]
    write_page(question, table(question, records, out))
    for cell in kept.unused():
        print(f"No page shows {kept.archive(cell).name} any more; take it out of folder and manifest.", file=sys.stderr)
    return 0


def run(grid: Path, cells: Sequence[str], out: Path, data: Path, settings: Sequence[str]) -> int:
    """Runs these cells of a grid; returns run_all.py's exit code."""
    if not cells:
        return 0
    command = ["run", "--config", str(grid), "--data", str(data), "--out", str(out), "--no-report", "--plain"]
    for cell in cells:
        command += ["--only", cell]
    for setting in settings:
        command += ["--set", setting]
    return run_all(command)


def unmade(cell: PlannedCell) -> Record:
    """A row for a cell that has no record."""
    config = cell.config
    block = RunBlock(
        cell_id=cell.id,
        config=config.model_dump(mode="json"),
        model=config.model.name,
        method=config.method,
        sparsity=config.sparsity,
        basis=config.basis,
        seed=config.seed,
        recovery=config.recovery,
        status="skipped",
        reason=LACKING,
        synthetic=config.synthetic,
    )
    return Record(run=block)


def in_todays_words(record: Record) -> Record:
    """The record with its settings as today's program would write them, so that records of several formats make one row.

    Without the data folder's name: that records were scored on the same items, the comparisons see by themselves.
    """
    told = settings_of(record.run.config) or {key: value for key, value in record.run.config.items() if key != "format"}
    return record.model_copy(update={"run": record.run.model_copy(update={"config": {**told, "data": ""}})})


def around_table(question: Question) -> tuple[str, str]:
    """What stands before and after the table of a page; of a new page where there is none.

    Raises:
        BadInput: the page has no place for the table.
    """
    page = question.page
    old = page.read_text(encoding="utf-8") if page.exists() else f"# {question.file.question}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(f"{page} has no lines {BEGIN!r} and {END!r}; put them where the table belongs.")
    return before, after


def write_page(question: Question, text: str) -> None:
    """Replaces the table of the page; raises as `around_table`."""
    before, after = around_table(question)
    made = f"Made by `{question.command}`; don't edit."
    question.page.write_text(f"{before}{BEGIN}\n{made}\n\n{text.rstrip()}\n{END}{after}", encoding="utf-8")
    print(question.page)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="findings.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", help="a folder of findings/ with a question.yaml")
    parser.add_argument("--out", type=Path, default=OUT, help="output folder of all runs; default results/findings")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="run.KEY=VALUE", help="how cells are run; repeatable"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of benchmark data")
    source.add_argument("--no-run", action="store_true", help="only write the table of the records that are kept")
    options = parser.parse_args(argv)
    try:
        for setting in options.settings:
            if set(parse_setting(setting)) != {"run"}:
                raise BadInput(f"--set {setting!r} would make other cells than the question's; only run.KEY=VALUE is taken here.")
        return build(load_question(options.question), Kept(ROOT / "records"), options.out, options.data, options.settings)
    except (PrunebenchError, LeaderboardError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
