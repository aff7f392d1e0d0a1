"""The options that verbs share, as dataclasses; a verb that takes one has all its options."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from prunebench.experiments.shorthands import MODEL_OPTIONS, PLACES


class Dtype(StrEnum):
    """Floating-point types that a model is computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ExecutorName(StrEnum):
    """Where cells run."""

    local = "local"
    processes = "processes"
    ray = "ray"
    slurm = "slurm"


@dataclass(frozen=True)
class Source:
    """Where the grid comes from, and where results go."""

    out: Annotated[Path | None, Option(metavar="DIR", help="output folder (default: results/<name of the grid>)")] = None
    config: Annotated[Path | None, Option(metavar="FILE", help="the grid, a YAML file")] = None
    settings: Annotated[list[str], Option("--set", metavar="KEY=VALUE", help="settings, e.g. grid.seed=[0,1]")] = field(
        default_factory=list
    )
    plugin: Annotated[list[Path], Option(metavar="FILE", help=".py files that register pruners, .yaml files with protocols")] = field(
        default_factory=list
    )


@dataclass(frozen=True)
class Cells(Source):
    """Which cells: a grid, and shorthands for one value of it."""

    data: Annotated[Path | None, Option(metavar="DIR", help="benchmark data as JSONL, tried before hub and embedded data")] = None
    only: Annotated[list[str], Option(metavar="ID", help="only the cell whose id starts so (repeatable)")] = field(default_factory=list)
    model: Annotated[str | None, Option(metavar="NAME", help="hub id, folder, .gguf file or embedded:NAME")] = None
    method: Annotated[str | None, Option(metavar="NAME", help="the only method")] = None
    sparsity: Annotated[float | None, Option(metavar="S", help="share of parameters to remove, between 0 and 1")] = None
    seed: Annotated[int | None, Option(metavar="N", help="the only seed")] = None
    protocol: Annotated[list[str], Option(metavar="NAME", help="evaluation protocols")] = field(default_factory=list)
    limit: Annotated[int | None, Option(metavar="N", help="documents a task")] = None
    dtype: Annotated[Dtype | None, Option(help="default: as the weights are stored")] = None
    device: Annotated[str | None, Option(metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ...")] = None
    device_map: Annotated[str | None, Option(metavar="MAP", help="accelerate's, e.g. auto, for a model larger than one device")] = None
    revision: Annotated[str | None, Option(metavar="REV", help="hub branch, tag or commit")] = None
    trust_remote_code: Annotated[bool, Option("--trust-remote-code", help="run modelling code that comes with the checkpoint")] = False
    attn_implementation: Annotated[str | None, Option(metavar="NAME", help="default: the fastest that the model supports")] = None

    def shorthands(self) -> dict[str, Any]:
        """Those that were given; see `load_config`."""
        given = {name: getattr(self, name, None) for name in (*PLACES, *MODEL_OPTIONS)}
        plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in given.items()}
        return {name: value for name, value in plain.items() if value not in (None, []) and value is not False}

    def command(self) -> str:
        """What gives these cells again: the grid, the settings and the plugins, without where the results go."""
        words = ["python", "run_all.py", "run"]
        for option, value in (("--config", self.config), ("--data", self.data)):
            words += [option, str(value)] if value is not None else []
        for setting in self.settings:
            words += ["--set", setting] if not setting.startswith("run.") else []
        for name, value in self.shorthands().items():
            if PLACES.get(name, ("",))[0] != "run":
                words.append(f"--{name.replace('_', '-')}")
                words += [] if value is True else [str(one) for one in value] if isinstance(value, list) else [str(value)]
        for plugin in self.plugin:
            words += ["--plugin", str(plugin)]
        return shlex.join(words)


@dataclass(frozen=True)
class RunningCells(Cells):
    """Which cells, and how they are run."""

    executor: Annotated[ExecutorName | None, Option(help="here, one process a cell, Ray tasks, or SLURM jobs")] = None
    workers: Annotated[int | None, Option(metavar="N", help="cells at a time (executors processes and slurm)")] = None
    address: Annotated[str | None, Option(metavar="HOST:PORT", help="Ray cluster to join, or auto")] = None
    plain: Annotated[bool, Option("--plain", help="plain lines even in a terminal")] = False
    no_retry: Annotated[bool, Option("--no-retry", help="leave cells that failed before as they are")] = False


def with_options(act: Callable[..., int]) -> Callable[..., int]:
    """Lets typer see the fields of a verb's dataclass parameters as options of the verb itself."""
    hints = get_type_hints(act, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(act).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        told = get_type_hints(groups[name], include_extras=True)
        for one in fields(groups[name]):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            parameters.append(inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=told[one.name]))

    @functools.wraps(act)
    def verb(**values: Any) -> int:
        for name, group in groups.items():
            values[name] = group(**{one.name: values.pop(one.name) for one in fields(group)})
        return act(**values)

    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verb
