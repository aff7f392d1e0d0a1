"""Protocols and tasks, typed, from the YAML files in `definitions/`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunebench.evaluation.results import SourceName
from prunebench.models.errors import BadInput
from prunebench.models.files import one_line, sha256_of
from prunebench.models.suggest import sentence

FOLDER = Path(__file__).parent / "definitions"


class _Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataDirSource(_Definition):
    """JSON Lines below the data folder, in the hub's schema."""

    split: str
    file: str
    where: dict[str, str] = {}
    fewshot_file: str | None = None
    transform: str | None = None
    note: str | None = None


class HubSource(_Definition):
    """A data set of the hub, by repository and configuration."""

    split: str
    path: str
    name: str | None = None
    fewshot_split: str | None = None
    transform: str | None = None
    note: str | None = None


class EmbeddedSource(_Definition):
    """Files of the embedded data package: an Arrow folder, or gzipped requests that hold the items."""

    split: str
    folder: str | None = None
    requests: str | None = None
    fewshot_folder: str | None = None
    transform: str | None = None
    note: str | None = None


class Sources(_Definition):
    """Where a task's items may come from; tried in this order."""

    data_dir: DataDirSource | None = Field(default=None, alias="data-dir")
    hub: HubSource | None = None
    embedded: EmbeddedSource | None = None


class PerplexityDefinition(_Definition):
    """How text is scored: `blocks` of a joined text, or `documents` one by one."""

    kind: Literal["blocks", "documents"]
    field: str
    join: str = ""
    block: int = 0


class TaskSize(_Definition):
    """What a task puts through a model, for estimates; tokens by SmolLM2's tokenizer, others differ by some ten per cent.

    Attributes:
        documents: items of the split; tokens: of one item, the context that its choices share counted once, and a
            generated answer as its tokens; shared: tokens of few-shot examples that are run once for all items.
    """

    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    shared: int = Field(default=0, ge=0)


class TaskDefinition(_Definition):
    """One task: the harness's own file (`stock`), what we override, where the rows are and what they must hold."""

    name: str
    size: TaskSize
    stock: str | None = None
    config: dict[str, Any] | None = None
    overrides: dict[str, Any] = {}
    perplexity: PerplexityDefinition | None = None
    row: dict[str, str]
    sources: Sources
    strata: dict[str, list[str]] = Field(default={}, description="category -> strata, each a task of the harness")
    pooled: bool = Field(default=True, description="average over items; False: unweighted mean over strata")
    chance: float | Literal["uniform", "majority"] = 0.0
    note: str | None = None
    scoring: Literal["starts_with_letter", "starts_with_target"] | None = None
    max_prompt_tokens: int | None = Field(default=None, description="examples are dropped while a prompt is longer")
    fewshot_from_head: int = Field(default=0, description="first rows of the file that serve as examples")
    shots_in_rows: bool = Field(default=False, description="the rows' own text holds the examples")

    @property
    def all_strata(self) -> list[str]:
        """Every stratum; [""] for a task that isn't divided."""
        return [stratum for members in self.strata.values() for stratum in members] or [""]


class ProtocolTask(_Definition):
    """A task in a protocol, with the shots and the metric that this protocol reports."""

    task: str
    shots: int = Field(ge=0)
    metric: str


class Without(_Definition):
    """What the protocol is called when one of its tasks has no data."""

    task: str
    name: str
    definition: str


class Protocol(_Definition):
    """Tasks, shots, metric and average; a changed number is a new version."""

    name: str
    version: int
    definition: str
    tasks: list[ProtocolTask]
    average: Literal["mean_of_tasks", "none"]
    without: Without | None = None
    source: str = Field("built-in", description="or the hash of the plugin that defines it")

    @model_validator(mode="after")
    def _tasks_exist(self) -> Protocol:
        for entry in self.tasks:
            if entry.task not in known_tasks():
                raise ValueError(f"protocol {self.name} names the unknown task {entry.task}")
        return self


class ProtocolRequest(_Definition):
    """A protocol as a caller wants it run: on fewer items, from certain sources only."""

    name: str
    limit: int | None = Field(default=None, ge=1, description="items a task; overrides the call's own limit")
    sources: tuple[SourceName, ...] = ("data-dir", "hub", "embedded")


def _read_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def known_tasks() -> dict[str, TaskDefinition]:
    """Every task by name."""
    tasks: dict[str, TaskDefinition] = {}
    for path in sorted((FOLDER / "tasks").glob("*.yaml")):
        for name, body in _read_yaml(path).items():
            tasks[name] = TaskDefinition(name=name, **body)
    return tasks


@cache
def known_protocols() -> dict[str, Protocol]:
    """Every protocol by name."""
    protocols = [Protocol(**_read_yaml(path)) for path in sorted((FOLDER / "protocols").glob("*.yaml"))]
    return {protocol.name: protocol for protocol in protocols}


class PluginFile(_Definition):
    """What a YAML file that is given as a plugin holds: tasks, as in definitions/tasks, and protocols, as in definitions/protocols."""

    tasks: dict[str, dict[str, Any]] = {}
    protocols: list[dict[str, Any]] = Field(min_length=1)


def load_protocols(path: Path) -> list[str]:
    """Adds the protocols and tasks of a YAML file to those that are known; returns the names of the protocols.

    Raises:
        BadInput: it isn't there, isn't YAML, holds something else, or a name that is taken.
    """
    import yaml

    try:
        held = PluginFile.model_validate(_read_yaml(path))
        tasks = {name: TaskDefinition.model_validate({"name": name, **body}) for name, body in held.tasks.items()}
        before = {name: known_tasks()[name] for name in tasks if name in known_tasks()}
        known_tasks().update(tasks)  # a protocol's own check looks its tasks up there
        try:
            source = f"plugin:{sha256_of(path)[:16]}"
            protocols = [Protocol.model_validate({**body, "source": source}) for body in held.protocols]
            taken = [name for name in before if before[name] != tasks[name]]
            taken += [p.name for p in protocols if known_protocols().get(p.name, p) != p]
            if taken:
                raise BadInput(f"plugin {path} defines {taken[0]!r}, a name that is taken; choose another one.")
        except (BadInput, ValidationError):
            for name in tasks.keys() - before.keys():
                del known_tasks()[name]
            known_tasks().update(before)
            raise
    except OSError as error:
        raise BadInput(f"plugin {path} can't be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"plugin {path} is not valid YAML ({one_line(error)}).") from None
    except ValidationError as error:
        raise BadInput(sentence(error, PluginFile, f"plugin {path}")) from None
    known_protocols().update({protocol.name: protocol for protocol in protocols})
    return [protocol.name for protocol in protocols]


def suggestion(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...? Known: ...' for an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(names)}."


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        BadInput: no such protocol; names the nearest one.
    """
    protocols = known_protocols()
    if name not in protocols:
        raise BadInput(f"Unknown protocol '{name}'.{suggestion(name, protocols)}")
    return protocols[name]
