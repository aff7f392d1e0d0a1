"""The command line's short options, such as --model and --dtype, as settings of a grid."""

from __future__ import annotations

from typing import Any

from prunebench.models.errors import BadInput
from prunebench.models.suggest import shown

DEFAULT_MODEL = "embedded:smollm2-135m-instruct"
NAMED_AXES = ("model", "method")
MODEL_OPTIONS = ("dtype", "device", "device_map", "revision", "trust_remote_code", "attn_implementation")
"""Shorthands that say how every model of the grid is loaded."""
PLACES: dict[str, tuple[str, ...]] = {
    "model": ("grid", "model"),
    "method": ("grid", "method"),
    "sparsity": ("grid", "sparsity"),
    "seed": ("grid", "seed"),
    "protocol": ("protocols",),
    "limit": ("evaluation", "limit"),
    "executor": ("run", "executor"),
    "workers": ("run", "workers"),
    "address": ("run", "address"),
}
"""Where the other shorthands of the command line stand in a grid."""


def with_shorthands(data: dict[str, Any], told: dict[str, Any], shorthands: dict[str, Any]) -> dict[str, Any]:
    """The grid with shorthands laid over it.

    Args:
        told: what `--set` said, which a shorthand may repeat but not contradict.

    Raises:
        BadInput: it contradicts it.
    """
    for name, place in PLACES.items():
        if name in shorthands:
            given = shorthands[name]
            before = _at(told, place)
            if before is not None and _names(before) != _names(given):
                raise BadInput(f"--{name} {shown(given)} and --set {'.'.join(place)}={shown(before)} say two things; give one of them.")
            if before is None:
                value = _entries_of(data, place, given) if name in NAMED_AXES else given
                data = merge(data, nested(place, value))
    options = {name: shorthands[name] for name in MODEL_OPTIONS if name in shorthands}
    if not options:
        return data
    for name, value in options.items():
        for entry in _as_list(_at(told, ("grid", "model"))):
            if isinstance(entry, dict) and entry.get(name, value) != value:
                flag = name.replace("_", "-")
                raise BadInput(
                    f"--{flag} {shown(value)} and {name}: {shown(entry[name])} in --set grid.model say two things; give one of them."
                )
    models = _as_list(_at(data, ("grid", "model"))) or [DEFAULT_MODEL]
    return merge(data, nested(("grid", "model"), [{**_entry(model), **options} for model in models]))


def _entries_of(data: dict[str, Any], place: tuple[str, ...], name: str) -> list[Any]:
    """The file's own entries of that name, with their settings; else the bare name."""
    return [entry for entry in _as_list(_at(data, place)) if _names(entry) == [name]] or [name]


def _names(value: Any) -> list[Any]:
    return [entry.get("name") if isinstance(entry, dict) else entry for entry in _as_list(value)]


def _entry(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"name": value}


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _at(data: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def nested(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`value` below the keys of `place`."""
    for key in reversed(place):
        value = {key: value}
    return dict(value)


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`overlay` laid over `base`: mappings merge, everything else replaces."""
    merged = dict(base)
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
