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
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunebench.leaderboard.errors import LeaderboardError, RecordWriteError
from prunebench.leaderboard.schema import (
    SCHEMA_VERSION,
    EfficiencyScore,
    Estimate,
    LayerShape,
    Metrics,
    Number,
    ProtocolScore,
    Provenance,
    Record,
    RunBlock,
    StageCost,
    Status,
    TaskScore,
)

__all__ = [
    "EfficiencyScore",
    "Estimate",
    "LayerShape",
    "MIGRATIONS",
    "Metrics",
    "Migration",
    "Number",
    "Problem",
    "ProblemKind",
    "ProtocolScore",
    "Provenance",
    "Record",
    "RunBlock",
    "SCHEMA_VERSION",
    "StageCost",
    "Status",
    "TaskScore",
    "cell_dir",
    "cells_dir",
    "read_record",
    "read_records",
    "record_path",
    "write_record",
]

ProblemKind = Literal["unreadable", "schema", "migrated", "invalid", "duplicate", "misplaced", "set aside"]


class Problem(BaseModel):
    """Something about the folder of records that the page must show."""

    model_config = ConfigDict(extra="forbid")

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
    record = Record.model_validate(_without_surrogates(record.model_dump()))
    text = json.dumps(json.loads(record.model_dump_json()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, text)
    except OSError as error:
        raise RecordWriteError(
            f"record {path} could not be written: {error.strerror or error}; free space or choose another --out."
        ) from error
    return path


def _without_surrogates(value: Any) -> Any:
    """Half characters (from file names that are no Unicode) become U+FFFD: no JSON or HTML file can hold them."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(v) for v in value]
    return value


def _write_atomically(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
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
    one cell_id the one that finished last is kept; what was set aside is named, whether it was run again or not. A folder
    without cells gives two empty lists.

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
    for path in sorted(cells_dir(out_dir).glob("*/set-aside/*record.json")):
        name, cell_id = path.relative_to(out_dir).as_posix(), path.parent.parent.name
        now = "the cell was run again since" if cell_id in kept else "the cell has no other record: run it again"
        problems.append(Problem(path=name, kind="set aside", message=f"{name} was set aside as changed or damaged; {now}."))
    return [record for record, _ in kept.values()], problems


def _finished(item: tuple[Record, str]) -> tuple[float, str]:
    finished = item[0].run.finished_at
    return (finished.timestamp() if finished else float("-inf"), item[1])


def _read(path: Path, name: str) -> tuple[Record | None, Problem | None]:
    try:
        raw = path.read_bytes()
        data = json.loads(raw.decode("utf-8"))
    except OSError as error:
        return None, Problem(path=name, kind="unreadable", message=f"{name} can't be read: {error.strerror or error}.")
    except (ValueError, RecursionError) as error:
        return None, Problem(path=name, kind="unreadable", message=f"{name} is not valid JSON ({error}); run the cell again.")
    if b"\\ud" in raw or b"\\uD" in raw:
        data = _without_surrogates(data)
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
