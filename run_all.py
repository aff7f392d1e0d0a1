"""The reproduction script: one YAML grid in, every record and the leaderboard out. `python run_all.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import prunebench  # noqa: F401 (found beside this file; a plugin's own `models` or `methods` must not be, see below)


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the command line over; returns the exit code (0 done, 1 a cell failed, 2 bad input, 130 stopped)."""
    from prunebench.experiments.commands import main as command_main
    from prunebench.leaderboard import build_report

    return command_main(argv, build_report)


if __name__ == "__main__":
    # This file's folder goes behind PYTHONPATH, where a researcher's own packages are, and before installed ones.
    here = sys.path.pop(0)
    sys.path.insert(next((i for i, entry in enumerate(sys.path) if entry.endswith("-packages")), len(sys.path)), here)
    sys.exit(main())
