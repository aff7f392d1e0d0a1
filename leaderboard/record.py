"""The record: everything needed to believe one cell of the grid, as one JSON file.

The leaderboard owns this format; `experiments` writes through it. Needs pydantic only.

Layout of an output folder:
    <out>/cells/<cell_id>/record.json           this file's `Record`
    <out>/cells/<cell_id>/samples/<protocol>__<task>.parquet
    <out>/cells/<cell_id>/masks.safetensors
    <out>/leaderboard/index.html                made by `leaderboard.build_report`

Three blocks: `run` (what was asked, how it went), `metrics` (what came out), `provenance` (what it was made from).
A cell that was skipped or failed is a record too: its `metrics` hold whatever was known when it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from leaderboard.errors import LeaderboardError, RecordWriteError

SCHEMA_VERSION = 1

Status = Literal["done", "skipped", "failed", "interrupted", "out_of_memory"]


def _none_to_nan(value: Any) -> Any:
    return float("nan") if value is None else value


Number = Annotated[float, BeforeValidator(_none_to_nan)]
"""A float that may be NaN: JSON has no NaN, so null and "NaN" both read as NaN (the page then says so)."""


class _Part(BaseModel):
    # NaN and infinity are written as strings, so that the file stays valid JSON.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())


class _FromResult(_Part):
    """A copy of another room's result: fields this format does not know are kept in `extra`, not lost."""

    extra: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def from_result(cls, result: Any) -> Self:
        """Copy a pydantic model (or mapping) of another room into this format."""
        data = result.model_dump() if isinstance(result, BaseModel) else dict(result)
        return cls.model_validate(cls._sort_fields(data))

    @classmethod
    def _sort_fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        known = {k: v for k, v in data.items() if k in cls.model_fields}
        unknown = {k: _plain(v) for k, v in data.items() if k not in cls.model_fields}
        known["extra"] = {**(known.get("extra") or {}), **unknown}
        return known


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


class Estimate(_Part):
    """A value with its standard error. Also accepts `(value, stderr)` and a bare number."""

    value: Number
    stderr: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, data: Any) -> Any:
        if isinstance(data, list | tuple) and len(data) == 2:
            return {"value": data[0], "stderr": data[1]}
        if isinstance(data, int | float):
            return {"value": data}
        return data


class TaskScore(_FromResult):
    """One task of one protocol, with the metric that the protocol names."""

    task: str
    metric: str
    value: Number
    stderr: float | None = None
    n: int = Field(0, ge=0, description="documents scored")
    shots: int = Field(0, ge=0)
    split: str = ""
    source: str = Field("", description="data-dir | hub | embedded | synthetic")
    source_hash: str | None = None
    higher_is_better: bool = True
    definition: str = ""
    chance: float | None = Field(None, description="expected value of guessing, same unit as value")
    all_metrics: dict[str, Estimate] = Field(default_factory=dict)
    truncated: int = Field(0, ge=0, description="documents whose context was cut")
    notes: list[str] = Field(default_factory=list)
    samples_file: str | None = Field(None, description="parquet, relative to the cell's folder")

    @model_validator(mode="before")
    @classmethod
    def _notes_as_list(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("notes"), str):
            data = {**data, "notes": [data["notes"]] if data["notes"] else []}
        return data


class ProtocolScore(_FromResult):
    """All tasks of one protocol, and the mean exactly as that protocol defines it."""

    protocol: str
    version: str = ""
    definition: str = ""
    tasks: list[TaskScore] = Field(default_factory=list)
    mean: Estimate | None = None
    chance: float | None = None
    margin: float | None = Field(None, description="mean minus chance")

    @model_validator(mode="before")
    @classmethod
    def _version_as_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("version"), int | float):
            data = {**data, "version": str(data["version"])}
        return data

    @classmethod
    def from_result(cls, result: Any) -> Self:
        data = result.model_dump() if isinstance(result, BaseModel) else dict(result)
        data = cls._sort_fields(data)
        data["tasks"] = [TaskScore.from_result(t) for t in data.get("tasks", [])]
        return cls.model_validate(data)


class EfficiencyScore(_FromResult):
    """Speed and memory of the sliced model on this machine."""

    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    macs_per_token: float | None = None
    repeats: int | None = None
    spread: dict[str, float] = Field(default_factory=dict, description="per quantity: relative spread of the repeats")


class LayerShape(_Part):
    """What stays of one decoder layer."""

    layer: int = Field(ge=0)
    kv_groups_kept: int = Field(ge=0)
    kv_groups_total: int = Field(ge=0)
    q_heads_kept: int = Field(ge=0)
    q_heads_total: int = Field(ge=0)
    ffn_kept: int = Field(ge=0)
    ffn_total: int = Field(ge=0)
    attn: bool = True
    mlp: bool = True


class StageCost(_Part):
    """What one stage of a cell cost."""

    name: str
    seconds: float = Field(0.0, ge=0)
    peak_memory_bytes: int | None = None
    tokens: int | None = Field(None, description="tokens that the stage pushed through the model")


class RunBlock(_Part):
    """What was asked and how it went."""

    cell_id: str = Field(min_length=1, description="hash of the resolved config of the cell")
    config: dict[str, Any] = Field(default_factory=dict)
    model: str
    method: str
    sparsity: float | None = Field(None, description="target; None for the dense cell")
    basis: str = "total"
    seed: int = 0
    recovery: str = "none"
    status: Status
    reason: str = ""
    synthetic: bool = False
    command: str = Field("", description="the command that produces this record again")
    stages: list[StageCost] = Field(default_factory=list)
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Metrics(_Part):
    """What came out."""

    params_total: int | None = None
    params_blocks: int | None = None
    dense_params_total: int | None = None
    dense_params_blocks: int | None = None
    achieved_sparsity_total: float | None = None
    achieved_sparsity_blocks: float | None = None
    disk_bytes: int | None = None
    shapes: list[LayerShape] = Field(default_factory=list)
    hidden_kept: int | None = None
    hidden_total: int | None = None
    scores: list[ProtocolScore] = Field(default_factory=list)
    efficiency: EfficiencyScore | None = None
    curves: dict[str, list[tuple[float, Number]]] = Field(default_factory=dict, description="name -> [step, value]")


class Provenance(_Part):
    """What it was made from."""

    model: dict[str, Any] = Field(default_factory=dict, description="source, revision, sha256 of the weights")
    data: list[dict[str, Any]] = Field(default_factory=list, description="source and hash of every data set used")
    packages: dict[str, str] = Field(default_factory=dict)
    python: str = ""
    platform: str = ""
    cpu: str = ""
    gpu: str | None = None
    threads: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    masks_sha256: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class Record(_Part):
    """One cell of the grid."""

    schema_version: int = SCHEMA_VERSION
    run: RunBlock
    metrics: Metrics = Field(default_factory=Metrics)
    provenance: Provenance = Field(default_factory=Provenance)


ProblemKind = Literal["unreadable", "schema", "migrated", "invalid", "duplicate", "misplaced"]


class Problem(_Part):
    """Something about the folder of records that the page must show."""

    path: str = Field(description="relative to the output folder")
    kind: ProblemKind
    message: str


Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[int, Migration] = {}
"""From an older schema version to the next one: `MIGRATIONS[n]` turns version n into n + 1."""


def cells_dir(out_dir: Path) -> Path:
    return Path(out_dir) / "cells"


def cell_dir(out_dir: Path, cell_id: str) -> Path:
    return cells_dir(out_dir) / cell_id


def record_path(out_dir: Path, cell_id: str) -> Path:
    return cell_dir(out_dir, cell_id) / "record.json"


def write_record(out_dir: Path, record: Record) -> Path:
    """Write `record` to `<out_dir>/cells/<cell_id>/record.json`, whole or not at all.

    Raises:
        RecordWriteError: cell_id is no plain folder name, or the file system refused (read-only, full).
    """
    cell_id = record.run.cell_id
    if cell_id in {".", ".."} or "/" in cell_id or "\\" in cell_id or "\0" in cell_id:
        raise RecordWriteError(f"cell_id {cell_id!r} is no folder name; use the hash of the cell's config.")
    path = record_path(out_dir, cell_id)
    text = json.dumps(json.loads(record.model_dump_json()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, text)
    except OSError as error:
        raise RecordWriteError(
            f"record {path} could not be written: {error.strerror or error}; free space or choose another --out."
        ) from error
    return path


def _write_atomically(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a record is as readable as any file of this user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_record(path: Path) -> Record:
    """Read one record file.

    Raises:
        LeaderboardError: unreadable, of a schema that can't be migrated, or invalid; the sentence says which.
    """
    record, problem = _read(Path(path), str(path))
    if record is None:
        assert problem is not None
        raise LeaderboardError(problem.message)
    return record


def read_records(out_dir: Path) -> tuple[list[Record], list[Problem]]:
    """Read every record under `<out_dir>/cells`, in the order of folder names.

    A file that can't be used becomes a `Problem` that says why; it never stops the reading. Of two records with
    one cell_id the one that finished last is kept. A folder without cells gives two empty lists.

    Raises:
        LeaderboardError: `out_dir` does not exist or is no folder.
    """
    out_dir = Path(out_dir)
    if not out_dir.is_dir():
        raise LeaderboardError(f"output folder {out_dir} does not exist; give the folder that `run --out` wrote.")
    problems: list[Problem] = []
    kept: dict[str, tuple[Record, str]] = {}
    for path in sorted(cells_dir(out_dir).glob("*/record.json")):
        name = path.relative_to(out_dir).as_posix()
        record, problem = _read(path, name)
        if problem is not None:
            problems.append(problem)
        if record is None:
            continue
        cell_id = record.run.cell_id
        if cell_id != path.parent.name:
            problems.append(Problem(path=name, kind="misplaced", message=f"{name} holds cell {cell_id!r}; its folder says otherwise."))
        if cell_id in kept:
            other = kept[cell_id]
            newest = max(other, (record, name), key=_finished)
            dropped = other[1] if newest[1] == name else name
            message = f"{dropped} repeats cell {cell_id!r}; {newest[1]}, which finished later, is shown."
            problems.append(Problem(path=dropped, kind="duplicate", message=message))
            kept[cell_id] = newest
        else:
            kept[cell_id] = (record, name)
    return [record for record, _ in kept.values()], problems


def _finished(item: tuple[Record, str]) -> tuple[float, str]:
    finished = item[0].run.finished_at
    return (finished.timestamp() if finished else float("-inf"), item[1])


def _read(path: Path, name: str) -> tuple[Record | None, Problem | None]:
    try:
        raw = path.read_bytes()
        data = json.loads(raw.decode("utf-8", errors="surrogatepass"))
    except OSError as error:
        return None, Problem(path=name, kind="unreadable", message=f"{name} can't be read: {error.strerror or error}.")
    except (ValueError, RecursionError) as error:
        return None, Problem(path=name, kind="unreadable", message=f"{name} is not valid JSON ({error}); run the cell again.")
    if not isinstance(data, dict):
        return None, Problem(path=name, kind="invalid", message=f"{name} is a {type(data).__name__}, not a record.")
    version = data.get("schema_version")
    migrated: Problem | None = None
    if version != SCHEMA_VERSION:
        if not isinstance(version, int) or isinstance(version, bool) or version > SCHEMA_VERSION:
            message = f"{name} has schema version {version!r}; this prunebench reads up to {SCHEMA_VERSION}: update it."
            return None, Problem(path=name, kind="schema", message=message)
        try:
            for step in range(version, SCHEMA_VERSION):
                data = MIGRATIONS[step](data)
        except Exception as error:
            message = f"{name} has schema version {version}, which could not be brought to {SCHEMA_VERSION} ({error!r})."
            return None, Problem(path=name, kind="schema", message=message)
        data = {**data, "schema_version": SCHEMA_VERSION}
        message = f"{name} was written in schema version {version} and read as version {SCHEMA_VERSION}."
        migrated = Problem(path=name, kind="migrated", message=message)
    try:
        return Record.model_validate(data), migrated
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        message = f"{name} is no valid record: {where}: {first['msg']}{more}; run the cell again."
        return None, Problem(path=name, kind="invalid", message=message)
