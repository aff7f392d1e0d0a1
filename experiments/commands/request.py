"""A command line, understood: the grid, its cells and where they go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.experiments.commands.options import Cells

if TYPE_CHECKING:
    from prunebench.experiments.config import GridConfig
    from prunebench.experiments.plan import PlannedCell


@dataclass
class Request:
    """What a verb works on.

    Attributes:
        command: what gives these cells again.
    """

    config: GridConfig
    cells: list[PlannedCell]
    out: Path
    plugins: list[Path]
    data: Path | None
    command: str


def understand(cells: Cells, *, needs_protocols: bool = True) -> Request:
    """Loads plugins and config and plans the grid; writes nothing.

    Raises:
        BadInput: whatever is wrong with any of them.
    """
    from prunebench.experiments.load_config import load_config
    from prunebench.experiments.plan import plan_grid, select
    from prunebench.experiments.plugins import load_plugins
    from prunebench.experiments.progress import quiet_libraries

    quiet_libraries()
    load_plugins(cells.plugin)
    config = load_config(cells.config, cells.settings, cells.shorthands())
    planned = select(plan_grid(config, cells.data, needs_protocols=needs_protocols), cells.only)
    return Request(config, planned, output_folder(cells.out, config), cells.plugin, cells.data, cells.command())


def output_folder(out: Path | None, config: GridConfig) -> Path:
    """`out`, or a folder below results/ named after the grid."""
    if out is not None:
        return out
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.name).strip(".") or "unnamed"
    return Path("results") / safe
