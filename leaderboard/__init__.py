"""The leaderboard room: records in, tables, statistics, plots and one HTML page out.

`leaderboard.record` (the record format) is cheap to import; everything heavy is loaded by `build_report`.
"""

from __future__ import annotations

if __name__ != "prunebench.leaderboard":
    raise ImportError(
        "import prunebench.leaderboard, not leaderboard: the folders at the top of the repository have no names of their own."
    )

from collections.abc import Callable
from pathlib import Path

from prunebench.leaderboard.errors import LeaderboardError

__all__ = ["LeaderboardError", "build_report"]

Progress = Callable[[str, int, int], None]


def build_report(out_dir: Path, *, progress: Progress | None = None) -> Path:
    """Build `<out_dir>/leaderboard/index.html` and its exports from the records under `out_dir`.

    Returns:
        The path of index.html.
    Raises:
        LeaderboardError: the folder is missing or can't be written, or the `report` extra is not installed.
    """
    from prunebench.leaderboard.build import build

    return build(Path(out_dir), progress=progress)
