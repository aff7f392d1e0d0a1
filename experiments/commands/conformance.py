"""`conformance`: a pruner against the promises that all keep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def conformance(
    pruner: Annotated[str, typer.Argument(metavar="PRUNER", help="a .py file that registers pruners, or the name of a known one")],
    plugin: Annotated[list[Path], typer.Option(metavar="FILE", help="load another pruner file first")] = [],  # noqa: B006
    family: Annotated[list[str], typer.Option(metavar="NAME", help="check on this architecture only (repeatable)")] = [],  # noqa: B006
) -> int:
    """Checks a pruner (a file or a name) against the promises that all keep."""
    from prunebench.experiments.plugins import load_plugins
    from prunebench.methods.conformance import check_pruner
    from prunebench.methods.registry import get_pruner, load_plugin
    from prunebench.models.errors import BadInput
    from prunebench.models.suggest import unknown
    from prunebench.models.tiny import FAMILIES

    load_plugins(plugin)
    names = load_plugin(Path(pruner)) if pruner.endswith(".py") or Path(pruner).is_file() else [pruner]
    if not names:
        raise BadInput(f"plugin {pruner} registers no pruner, and the promises are those of pruners.")
    for one in family:
        if one not in FAMILIES:
            raise unknown("architecture", one, FAMILIES)
    fails = False
    for name in names:
        findings = check_pruner(get_pruner(name), None, tuple(family or FAMILIES))
        for finding in findings:
            if finding.status != "kept":
                print(f"{name} on {finding.family}: {finding.promise}: {finding.status}: {finding.message}")
        counts = {status: sum(f.status == status for f in findings) for status in ("kept", "skipped", "broken")}
        print(f"{name}: {counts['kept']} promises kept, {counts['skipped']} skipped, {counts['broken']} broken")
        fails |= counts["broken"] > 0 or counts["kept"] == 0  # where nothing could be checked, nothing is promised
    return 1 if fails else 0
