"""Looks for every text and every data set that a grid names, before anything is computed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

from prunebench.evaluation.catalogue import get_protocol, known_tasks
from prunebench.evaluation.results import SourceName
from prunebench.evaluation.sources import NoData, find_task_data
from prunebench.experiments.cell import CellConfig
from prunebench.experiments.checks.methods import lengths_of, may_prune, one_of_each, pruner_of, recovery_settings
from prunebench.experiments.plan import PlannedCell
from prunebench.methods.data.contamination import check_evaluation_files
from prunebench.methods.data.sources import find_corpus
from prunebench.methods.data.training_text import training_texts
from prunebench.methods.registry import get_recovery
from prunebench.models.assets import embedded_data_root
from prunebench.models.errors import BadInput

NO_CORPUS = ("calibration", "self")
"""Sources of training text that are made of what is there already."""


def check_sources(
    cells: Sequence[PlannedCell], data_dir: Path | None, until: Literal["prune", "record"] = "record", *, prunes: bool = True
) -> None:
    """Refuses calibration text, training text and benchmark data that are nowhere to be had.

    Args:
        until: with `prune` nothing is evaluated, and no benchmark data are looked for.
        prunes: False where the cells are pruned already, so that only benchmark data are looked for.

    Raises:
        BadInput: names the setting and the first source that is missing.
    """
    texts = _texts_of(cells) if prunes else {}
    for setting, source, is_read in texts:
        try:
            find_corpus(source, data_dir, is_read=is_read)
        except BadInput as error:
            raise BadInput(f"{setting}: {error}") from None
    if data_dir is not None and any(is_read for _, _, is_read in texts):
        check_evaluation_files(data_dir)
    if until == "record":
        for name, sources in _protocols_of(cells):
            check_protocol_data(name, sources, data_dir)


def fetch_data(
    cells: Sequence[PlannedCell], data_dir: Path | None, until: Literal["prune", "record"] = "record", *, prunes: bool = True
) -> None:
    """Fetches the embedded data where the cells read them, so that a run that can't have them ends before it starts.

    Args:
        until, prunes: as of `check_sources`, which has passed.

    Raises:
        AssetError: they can't be fetched.
    """
    read = {source for _, source, is_read in _texts_of(cells) if is_read and prunes}
    is_needed = "embedded" in read or bool(read and data_dir is None)  # without a folder, texts are compared with the embedded tasks
    if until == "record" and not is_needed:
        is_needed = any("embedded" in check_protocol_data(name, sources, data_dir) for name, sources in _protocols_of(cells))
    if is_needed:
        embedded_data_root()


def check_protocol_data(name: str, sources: Sequence[SourceName], data_dir: Path | None) -> set[SourceName]:
    """Refuses a protocol of which a task has no data; says where the data of the others are.

    Raises:
        BadInput: names the protocol, the task and where was looked; or what to install.
    """
    for package in ("lm_eval", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise BadInput(f"protocol {name} needs the package {package}, which is not installed; install prunebench[eval].")
    protocol = get_protocol(name)
    found: set[SourceName] = set()
    for entry in protocol.tasks:
        try:
            found |= find_task_data(known_tasks()[entry.task], sources, data_dir, entry.shots)
        except NoData as error:
            if protocol.without is None or protocol.without.task != entry.task:  # which is left out, with a note
                raise BadInput(f"protocol {name}: {error}") from None
        except BadInput as error:
            raise BadInput(f"protocol {name}: {error}") from None
    return found


def _protocols_of(cells: Sequence[PlannedCell]) -> dict[tuple[str, tuple[SourceName, ...]], None]:
    return dict.fromkeys(
        (protocol.name, cast(tuple[SourceName, ...], protocol.sources))  # which were checked with the config
        for cell in cells
        for protocol in cell.config.protocols
    )


def _texts_of(cells: Sequence[PlannedCell]) -> dict[tuple[str, str, bool], None]:
    found: dict[tuple[str, str, bool], None] = {}
    for cell in one_of_each(cells):
        reads = may_prune(cell)  # a row that says why the method can't takes no text
        found |= {(setting, source, is_read and reads): None for setting, source, is_read in _texts(cell.config)}
    return found


def _texts(cell: CellConfig) -> Iterator[tuple[str, str, bool]]:
    """(setting, source, whether the cell reads it) of every text that a cell names."""
    pruner = pruner_of(cell)
    assert cell.calibration is not None  # cells that prune have it
    yield "calibration.source", cell.calibration.source, pruner.needs_calibration
    read = lengths_of(pruner, cell, lambda text, bos: 0)  # a method names the texts that it hands to the model there
    for name, text in training_texts(pruner.config).items():
        if text.source not in NO_CORPUS:
            yield f"{name}.source of method {cell.method}", text.source, f"{name}.max_len" in read
    for name, text in training_texts(recovery_settings(cell)).items():
        if text.source not in NO_CORPUS:
            yield f"{name}.source of recovery {cell.recovery}", text.source, get_recovery(cell.recovery).trains
