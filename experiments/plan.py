"""From the typed grid to the list of cells, with every name checked and every default filled in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.experiments.cell import DENSE, CellConfig, CellModel, CellProtocol
from prunebench.experiments.checks.model import check_model, data_fingerprint
from prunebench.experiments.checks.prompt import prompt_of
from prunebench.experiments.config import Grid, GridConfig, MethodChoice, Pattern, RecoveryChoice
from prunebench.leaderboard.variants import in_words, set_apart
from prunebench.methods.registry import get_recovery
from prunebench.methods.settings import resolved
from prunebench.models.errors import BadInput
from prunebench.models.files import sha256_of
from prunebench.models.loading import ModelSpec, hub_commit, is_hub_id
from prunebench.models.suggest import shown, unknown


@dataclass(frozen=True)
class PlannedCell:
    """A cell and how its model is to be loaded here (the device isn't part of the cell).

    Attributes:
        variant: what sets its method and recovery apart from others of the same name in this grid.
    """

    config: CellConfig
    model: ModelSpec
    variant: str = ""

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def title(self) -> str:
        """What the cell is called on the screen."""
        return f"{self.config.title} ({self.variant})" if self.variant else self.config.title


@dataclass(frozen=True)
class _Resolved:
    """One entry of an axis that may name the same thing with several settings."""

    name: str
    settings: dict[str, Any]
    source: str = "built-in"
    variant: str = ""


def plan_grid(config: GridConfig, data_dir: Path | None = None, *, needs_protocols: bool = True) -> list[PlannedCell]:
    """Every cell of the grid, each once, in the order in which they run: dense first, then by sparsity and method.

    Raises:
        BadInput: an unknown method, protocol, recovery or model, or a setting that a method refuses.
    """
    if not config.grid.method and not config.grid.dense:
        raise BadInput("grid.method is empty and grid.dense is false: there is nothing to run; name a method, for example magnitude.")
    if config.grid.method and not config.grid.sparsity and not config.grid.include:
        raise BadInput("grid.sparsity is empty; give the share of parameters to remove, for example [0.2, 0.4].")
    if needs_protocols and not config.protocols:
        raise BadInput("protocols is empty; name at least one, for example commonsense_llm_pruner.")
    _check_patterns(config)
    protocols = _resolve_protocols(config)
    methods = _with_variants("method", [_resolve_method(config, choice) for choice in config.grid.method])
    _check_method_config(config)
    recoveries = _with_variants("recovery", [_resolve_recovery(choice) for choice in config.grid.recovery])
    data = "embedded" if data_dir is None else data_fingerprint(data_dir)

    cells: dict[str, PlannedCell] = {}
    for model in map(_pinned, config.grid.model):
        cell_model = CellModel(
            name=model.name,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            fingerprint=check_model(model),
        )
        common: dict[str, Any] = {
            "model": cell_model,
            "protocols": protocols,
            "efficiency": config.efficiency,
            "data": data,
            "synthetic": config.synthetic,
            "basis": config.grid.basis,
        }
        if config.grid.dense:
            dense = CellConfig(
                **common,
                method=DENSE,
                method_config={},
                method_source="built-in",
                sparsity=None,
                seed=0,
                recovery="none",
                recovery_config={},
                recovery_source="built-in",
                calibration=None,
            )
            cells.setdefault(dense.id, PlannedCell(dense, model))
        for method, sparsity, seed, recovery in _combinations(config.grid, methods, recoveries, model):
            cell = CellConfig(
                **common,
                method=method.name,
                method_config=method.settings,
                method_source=method.source,
                sparsity=sparsity,
                seed=seed,
                recovery=recovery.name,
                recovery_config=recovery.settings,
                recovery_source=recovery.source,
                calibration=config.calibration,
            )
            variant = ", ".join(part for part in (method.variant, recovery.variant) if part)
            cells.setdefault(cell.id, PlannedCell(cell, model, variant))
    if not cells:
        raise BadInput("grid.exclude leaves no cell to run; exclude less.")
    return list(cells.values())


def _pinned(model: ModelSpec) -> ModelSpec:
    """The same model, a hub model at the commit that its revision names now."""
    if not is_hub_id(model.name) or Path(model.name).expanduser().exists():
        return model
    return model.model_copy(update={"revision": hub_commit(model.name, model.revision) or model.revision})


def select(cells: list[PlannedCell], wanted: list[str]) -> list[PlannedCell]:
    """The cells whose id starts with one of `wanted` (all cells when it is empty).

    Raises:
        BadInput: an id that is no cell of this grid, or the start of several.
    """
    if not wanted:
        return cells
    chosen = []
    for start in wanted:
        matching = [cell for cell in cells if cell.id.startswith(start)] if start else []
        if len(matching) != 1:
            found = "is no cell of this grid" if not matching else f"is the start of {len(matching)} cells"
            raise BadInput(f"--only {shown(start)} {found}; the ids stand in the first column of the verb plan.")
        chosen.append(matching[0])
    return chosen


def _combinations(
    grid: Grid, methods: list[_Resolved], recoveries: list[_Resolved], model: ModelSpec
) -> Iterator[tuple[_Resolved, float, int, _Resolved]]:
    for sparsity in grid.sparsity:
        for method in methods:
            for seed in grid.seed:
                for recovery in recoveries:
                    if not any(_matches(p, model.name, method.name, sparsity, seed, recovery.name) for p in grid.exclude):
                        yield method, sparsity, seed, recovery
    for include in grid.include:
        if include.model not in (None, model.name):
            continue
        assert include.sparsity is not None  # the config demands it
        for method in (m for m in methods if m.name == include.method):
            for seed in grid.seed if include.seed is None else (include.seed,):
                for recovery in (r for r in recoveries if include.recovery in (None, r.name)):
                    yield method, include.sparsity, seed, recovery


def _matches(pattern: Pattern, model: str, method: str, sparsity: float, seed: int, recovery: str) -> bool:
    pairs = (
        (pattern.model, model),
        (pattern.method, method),
        (pattern.sparsity, sparsity),
        (pattern.seed, seed),
        (pattern.recovery, recovery),
    )
    return all(wanted is None or wanted == value for wanted, value in pairs)


def _check_patterns(config: GridConfig) -> None:
    """Every name in an exclude or include must be on the grid: a misspelt exclude would silently exclude nothing."""
    grid = config.grid
    names = {
        "model": [m.name for m in grid.model],
        "method": [m.name for m in grid.method],
        "recovery": [r.name for r in grid.recovery],
    }
    twice = next((v for v in names["model"] if names["model"].count(v) > 1), None)
    if twice is not None:
        raise BadInput(f"grid.model names {shown(twice)} twice; each model may stand there once.")
    for where, patterns in (("exclude", grid.exclude), ("include", grid.include)):
        for pattern in patterns:
            for kind, values in names.items():
                value = getattr(pattern, kind)
                if value is not None and value not in values:
                    raise unknown(f"{kind} in grid.{where}", value, values)


def _resolve_protocols(config: GridConfig) -> tuple[CellProtocol, ...]:
    from prunebench.evaluation import known_protocols

    known = known_protocols()
    prompt = prompt_of(config.evaluation.prompt)
    resolved = []
    for choice in config.protocols:
        if choice.name not in known:
            raise unknown("protocol", choice.name, known)
        resolved.append(
            CellProtocol(
                name=choice.name,
                version=str(known[choice.name].version),
                source=known[choice.name].source,
                limit=choice.limit if choice.limit is not None else config.evaluation.limit,
                sources=choice.sources,
                prompt=prompt,
                bos=config.evaluation.bos,
                chat_template=config.evaluation.chat_template,
                system=config.evaluation.system,
                seed=config.evaluation.seed,
            )
        )
    names = [p.name for p in resolved]
    if len(names) != len(set(names)):
        raise BadInput(f"protocols names {shown(max(names, key=names.count))} twice; each protocol may stand there once.")
    return tuple(resolved)


def _with_variants(kind: str, entries: list[_Resolved]) -> list[_Resolved]:
    """The entries of one axis, each with what sets it apart from others of its name, in the leaderboard's words.

    Raises:
        BadInput: two entries are the same.
    """
    named = []
    for entry in entries:
        others = [other for other in entries if other.name == entry.name]
        if others.count(entry) > 1:
            raise BadInput(f"grid.{kind} names {shown(entry.name)} twice with the same settings; give each entry a config of its own.")
        told = set_apart([other.settings for other in others])[others.index(entry)]
        named.append(replace(entry, variant=in_words(told)))
    return named


def _resolve_recovery(choice: RecoveryChoice) -> _Resolved:
    recovery = get_recovery(choice.name)
    return _Resolved(choice.name, recovery.resolve(choice.config), code_source(recovery))


def _resolve_method(config: GridConfig, choice: MethodChoice) -> _Resolved:
    """The full settings of a method and where its code comes from."""
    from prunebench.methods.registry import get_pruner

    if choice.name == DENSE:
        raise BadInput("grid.method names 'dense'; the unpruned model is its own row: set grid.dense to true or false instead.")
    pruner = get_pruner(choice.name)
    settings = {**config.method_config.get(choice.name, {}), **choice.config}
    return _Resolved(choice.name, resolved(pruner.Config, settings, f"method {choice.name}"), code_source(pruner))


def _check_method_config(config: GridConfig) -> None:
    """Settings of a known method that this grid doesn't run do no harm: the grid may extend one that does."""
    from prunebench.methods.registry import known_pruners

    known = known_pruners()
    for name in config.method_config:
        if name not in known:
            raise unknown("method in method_config", name, known)


def code_source(found: type) -> str:
    """`built-in`, or the hash of the file that defines a plugin: changed code makes new cells."""
    if found.__module__.startswith("prunebench.methods."):
        return "built-in"
    try:
        return f"plugin:{sha256_of(Path(inspect.getfile(found)))[:16]}"
    except (TypeError, OSError):
        return f"plugin:{found.__module__}.{found.__qualname__}"
