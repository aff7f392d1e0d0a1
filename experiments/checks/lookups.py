"""Looks for every text and every data set that a grid names, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from prunebench.evaluation.catalogue import get_protocol, known_tasks
from prunebench.evaluation.results import SourceName
from prunebench.evaluation.sources import NoData, find_task_data
from prunebench.experiments.cell import CellConfig
from prunebench.experiments.plan import PlannedCell
from prunebench.methods.data.sources import find_corpus
from prunebench.methods.data.training_text import training_texts
from prunebench.methods.registry import get_pruner, get_recovery
from prunebench.models.errors import BadInput

NO_CORPUS = ("calibration", "self")
"""Sources of training text that are made of what is there already."""


def check_sources(cells: Sequence[PlannedCell], data_dir: Path | None, until: Literal["prune", "record"] = "record") -> None:
    """Refuses calibration text, training text and benchmark data that are nowhere to be had.

    Args:
        until: with `prune` nothing is evaluated, and no benchmark data are looked for.

    Raises:
        BadInput: names the setting and the first source that is missing.
    """
    texts = dict.fromkeys(found for cell in cells if not cell.config.is_dense for found in _texts(cell.config))
    for setting, source, is_read in texts:
        try:
            find_corpus(source, data_dir, is_read=is_read)
        except BadInput as error:
            raise BadInput(f"{setting}: {error}") from None
    if until == "record":
        protocols = dict.fromkeys((protocol.name, protocol.sources) for cell in cells for protocol in cell.config.protocols)
        for name, sources in protocols:
            check_protocol_data(name, sources, data_dir)  # type: ignore[arg-type]  # their names were checked with the config


def check_protocol_data(name: str, sources: Sequence[SourceName], data_dir: Path | None) -> None:
    """Refuses a protocol of which a task has no data.

    Raises:
        BadInput: names the protocol, the task and where was looked.
    """
    protocol = get_protocol(name)
    for entry in protocol.tasks:
        try:
            find_task_data(known_tasks()[entry.task], sources, data_dir, entry.shots)
        except NoData as error:
            if protocol.without is None or protocol.without.task != entry.task:  # which is left out, with a note
                raise BadInput(f"protocol {name}: {error}") from None


def _texts(cell: CellConfig) -> Iterator[tuple[str, str, bool]]:
    """(setting, source, whether the cell reads it) of every text that a cell names."""
    pruner = get_pruner(cell.method)
    assert cell.calibration is not None  # cells that prune have it
    yield "calibration.source", cell.calibration.source, pruner.needs_calibration
    recovery = get_recovery(cell.recovery)
    for whose, settings in (
        (f"method {cell.method}", pruner.Config.model_validate(cell.method_config)),
        (f"recovery {cell.recovery}", recovery.Config.model_validate(cell.recovery_config)),
    ):
        for name, text in training_texts(settings).items():
            if text.source not in NO_CORPUS:
                yield f"{name}.source of {whose}", text.source, True
