"""What methods and recoveries say of themselves before a run, with what their code may do instead as one sentence."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from prunebench.experiments.cell import CellConfig
from prunebench.experiments.plan import PlannedCell
from prunebench.methods.pruner import Pruner, Support
from prunebench.methods.registry import get_pruner, get_recovery
from prunebench.methods.settings import code_of
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import BadInput, PrunebenchError, UnsupportedModel
from prunebench.models.loading import check_loads


def check_methods(cells: Sequence[PlannedCell], *, strictly: bool) -> None:
    """Asks every method and recovery for what the plan, the checks and the records want to know.

    Args:
        strictly: ask `supports()` too; else a method whose `supports()` fails is left to its cells, which fail with it.

    Raises:
        BadInput: the method, what it was asked, and what its code did instead.
    """
    for cell in one_of_each(cells):
        training_tokens(cell.config)
        lengths_of(pruner_of(cell.config), cell.config, lambda text, bos: 0)
        if strictly:
            anatomy = anatomy_of(cell)
            if anatomy is not None:
                with code_of(f"supports() of method {cell.config.method}"):
                    support_of(pruner_of(cell.config), anatomy)


def one_of_each(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The first pruned cell of each model, method, recovery and their settings."""
    found: dict[Any, PlannedCell] = {}
    for cell in cells:
        if not cell.config.is_dense:
            settings = json.dumps([cell.config.method_config, cell.config.recovery_config], sort_keys=True)
            found.setdefault((cell.model, cell.config.method, cell.config.recovery, settings), cell)
    return list(found.values())


def pruner_of(cell: CellConfig) -> Pruner:
    """The method of a cell with its settings.

    Raises:
        BadInput: its code fails.
    """
    pruner = get_pruner(cell.method)
    with code_of(f"method {cell.method}, when it is made,"):
        made: Pruner = pruner(pruner.Config.model_validate(cell.method_config))
    return made


def recovery_settings(cell: CellConfig) -> Any:
    """The settings of a cell's recovery, as its own config.

    Raises:
        BadInput: its code fails.
    """
    with code_of(f"settings of recovery {cell.recovery}"):
        return get_recovery(cell.recovery).Config.model_validate(cell.recovery_config)


def lengths_of(pruner: Pruner, cell: CellConfig, prompt_tokens: Callable[[str, Any], int]) -> dict[str, int]:
    """`Pruner.lengths` of a cell's method.

    Raises:
        BadInput: its code fails, or returns anything but numbers by name.
    """
    assert cell.calibration is not None  # cells that prune have it
    with code_of(f"lengths() of method {cell.method}"):
        found = pruner.lengths(cell.calibration.seq_len, prompt_tokens)
        return {str(name): int(tokens) for name, tokens in found.items()}


def training_tokens(cell: CellConfig) -> tuple[int | None, int | None]:
    """Tokens that the method and the recovery of a cell train on; None where the text's length decides.

    Raises:
        BadInput: their code fails, or returns anything but a number or None.
    """
    with code_of(f"training_tokens() of method {cell.method}"):
        of_method = _count(pruner_of(cell).training_tokens(), f"method {cell.method}")
    with code_of(f"training_tokens() of recovery {cell.recovery}"):
        of_recovery = _count(get_recovery(cell.recovery).training_tokens(cell.recovery_config), f"recovery {cell.recovery}")
    return of_method, of_recovery


def _count(value: Any, whose: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise BadInput(f"training_tokens() of {whose} returned {value!r}; it must return a number of tokens, or None.")
    return value


def support_of(pruner: Pruner, anatomy: Anatomy) -> Support:
    """`Pruner.supports`, which must give an answer, and a reason where the answer is no.

    Raises:
        PrunebenchError: it doesn't; whatever else its code raises.
    """
    support: Any = pruner.supports(anatomy)
    if not isinstance(support, Support):
        raise PrunebenchError(f"supports() of method {pruner.name} returned {type(support).__name__}; it must return a Support.")
    if not support.ok and not support.reason.strip():
        raise PrunebenchError(f"supports() of method {pruner.name} says no without a reason.")
    return support


def anatomy_of(cell: PlannedCell) -> Anatomy | None:
    """The anatomy of a cell's model; None where its files aren't here yet, or the anatomy can't read it."""
    empty = check_loads(cell.model)
    return None if empty is None else _readable_anatomy(empty)


@functools.lru_cache(maxsize=16)
def _readable_anatomy(empty: PreTrainedModel) -> Anatomy | None:
    try:
        return Anatomy.from_model(empty)
    except UnsupportedModel:
        return None


def may_prune(cell: PlannedCell) -> bool:
    """Whether the method of a cell will get as far as pruning: `supports()` neither says no nor fails."""
    anatomy = anatomy_of(cell)
    if anatomy is None:
        return True
    try:
        with code_of("supports()"):
            return support_of(pruner_of(cell.config), anatomy).ok
    except PrunebenchError:
        return False
