"""Reads a grid: YAML files that extend one another, then --set KEY=VALUE, then types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from prunebench.experiments.config import GridConfig
from prunebench.experiments.shorthands import merge, nested, with_shorthands
from prunebench.models.errors import BadInput
from prunebench.models.suggest import sentence, shown

MAX_CONFIG_BYTES = 1_000_000
MAX_EXTENDS = 16
MAX_DEPTH = 40


def load_config(path: Path | None, settings: Sequence[str] = (), shorthands: Mapping[str, Any] | None = None) -> GridConfig:
    """The typed grid of `path` with `settings` (each KEY=VALUE, KEY dotted, VALUE in YAML) and shorthands laid over it.

    `extends: FILE` (or a list) names files, relative to the one that says so, that this one is laid over.
    Mappings are merged key by key; lists and plain values are replaced. What the command line says takes the place of
    what the file says; there it may say a thing twice only with one value.

    Args:
        shorthands: keys of `PLACES` and `MODEL_OPTIONS`, with their values.

    Raises:
        BadInput: a file that isn't there or isn't YAML, an unknown key, a value out of range, two values for one thing;
            one sentence.
    """
    data: dict[str, Any] = _read_with_extends(Path(path), ()) if path is not None else {}
    where = str(path) if path is not None else "the built-in defaults"
    told = _settings_together(settings)
    data = merge(data, told)
    data = with_shorthands(data, told, {name: value for name, value in (shorthands or {}).items() if value is not None})
    if settings:
        where += " with --set"
    if _depth(data) > MAX_DEPTH:
        raise BadInput(f"{where}: nested more than {MAX_DEPTH} levels deep; a grid needs four.")
    try:
        return GridConfig.model_validate(data)
    except ValidationError as error:
        raise BadInput(sentence(error, GridConfig, where)) from None
    except (RecursionError, OverflowError):
        raise BadInput(f"{where}: values nested too deep or too large to read.") from None


def _settings_together(settings: Sequence[str]) -> dict[str, Any]:
    """All `--set` as one mapping.

    Raises:
        BadInput: two of them give one key different values.
    """
    together: dict[str, Any] = {}
    for setting in settings:
        one = parse_setting(setting)
        _refuse_contradiction(together, one, ())
        together = merge(together, one)
    return together


def _refuse_contradiction(one: Any, other: Any, path: tuple[str, ...]) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() & other.keys():
            _refuse_contradiction(one[key], other[key], (*path, str(key)))
    elif path and one != other:
        raise BadInput(f"--set gives {'.'.join(path)} two values, {shown(one)} and {shown(other)}; give it once.")


def parse_setting(setting: str) -> dict[str, Any]:
    """`a.b=3` as `{'a': {'b': 3}}`."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BadInput(f"--set {shown(setting)}: expected KEY=VALUE, for example --set grid.seed=[0,1,2].")
    return nested(tuple(parts), _parse_yaml(text, f"--set {key}"))


def _read_with_extends(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in chain:
        raise BadInput(f"{path}: 'extends' goes round in a circle ({' -> '.join(p.name for p in (*chain, resolved))}).")
    if len(chain) >= MAX_EXTENDS:
        raise BadInput(f"{path}: more than {MAX_EXTENDS} files extend one another.")
    data = _read_yaml(path)
    if "extends" not in data:
        return data
    extends = data.pop("extends")
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BadInput(f"{path}: extends = {shown(extends)} is not accepted: expected a file name or a list of them.")
    base: dict[str, Any] = {}
    for name in names:
        if "\0" in name:
            raise BadInput(f"{path}: extends = {shown(name)} is no file name.")
        base = merge(base, _read_with_extends(path.parent / name, (*chain, resolved)))
    return merge(base, data)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.is_file() and path.stat().st_size > MAX_CONFIG_BYTES:
            raise BadInput(f"Config {path} has {path.stat().st_size} bytes; a grid fits in {MAX_CONFIG_BYTES}: is it the right file?")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"Config {path} does not exist; give a YAML file, for example configs/demo.yaml.") from None
    except IsADirectoryError:
        raise BadInput(f"Config {path} is a folder; give a YAML file, for example configs/demo.yaml.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"Config {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise BadInput(f"Config {path} can't be read: {error.strerror}.") from None
    data = _parse_yaml(text, f"Config {path}")
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise BadInput(f"Config {path} holds {shown(data)}; expected keys such as grid, calibration, protocols.")
    return data


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys and anchors (a few lines of anchors can stand for gigabytes)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not accepted", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"{where} is not valid YAML{place}: {error.problem or error.context or 'unreadable'}.") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadInput(f"{where} is not valid YAML: {type(error).__name__} ({' '.join(str(error).split())[:100]}).") from None


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return depth
        level = [child for one in level if isinstance(one, dict | list) for child in (one.values() if isinstance(one, dict) else one)]
    return depth
