"""The folder of one cell: locks, atomic writes, and stamps that say which files a stage left and from what.

    <out>/cells/<id>/cell.json             the resolved config
                     stages/<stage>.json   stamp: inputs, artifacts with hashes, numbers, cost; sealed by its own hash
                     masks.safetensors, weights.safetensors, checkpoint/, samples/
                     record.json, record.seal
                     unfinished/<stage>/   a stage's own resumable state; gone when the stage is done
                     set-aside/            damaged files, kept for a look, never read

A stage is done when its stamp is whole, was made from the same inputs, and every file it names is there unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prunebench.experiments.hashing import hash_value
from prunebench.models.errors import BadInput, text_of
from prunebench.models.files import sha256_of

TEMPORARY_PREFIX = ".tmp-"


class OutputError(BadInput):
    """The output folder can't be written any more; the run stops, since every other cell would fail too."""


OUTPUT_ERRNOS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE)


def output_error(folder: Path, error: BaseException) -> OutputError | None:
    """The one sentence for an error that says the output folder is full, read-only or gone; None for other errors."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in chain:
        if isinstance(one, OutputError):
            return one
        number = one.errno if isinstance(one, OSError) else None
        text = text_of(one)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text or "os error 28" in text:
            return OutputError(f"The disk of output folder {folder} is full; free some space and give the same command again.")
        if number == errno.EROFS or "Read-only file system" in text:
            return OutputError(f"Output folder {folder} is read-only; make it writable or choose another --out.")
    if not folder.is_dir():
        return OutputError(f"Output folder {folder} is gone; give the same command again to start it anew.")
    if any(isinstance(one, PermissionError) for one in chain) and not os.access(folder, os.W_OK):
        return OutputError(f"Output folder {folder} can't be written; make it writable or choose another --out.")
    return None


def prepare_output_folder(folder: Path) -> None:
    """Creates `folder` and proves that a file can be written there.

    Raises:
        OutputError: it is a file, read-only, or on a full disk; nothing is left behind.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"Output folder {folder} is a file; choose another --out.")
    probe = folder / f"{TEMPORARY_PREFIX}probe-{secrets.token_hex(4)}"
    made: list[Path] = []
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir(exist_ok=True)
            made.append(parent)
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        known = output_error(folder, error) if folder.is_dir() else None
        raise known or OutputError(
            f"Output folder {folder} can't be written ({error.strerror or error}); make it writable or choose another --out."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def remove(path: Path) -> None:
    """Deletes a file or folder, if there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


class CellFolder:
    """One cell's folder. Everything but reading happens under `lock`."""

    def __init__(self, out: Path, cell_id: str) -> None:
        self.out = out
        self.cell_id = cell_id
        self.path = out / "cells" / cell_id

    # --- one writer ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Yields True while this process alone may write the cell, False at once if another one has it.

        The operating system drops the lock when its holder dies, however it dies.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Another process works on this cell now."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with self.lock() as mine:
                return not mine
        except OSError:  # a folder that can only be read has no writer
            return False

    # --- stamps ----------------------------------------------------------------------------------------------------

    def stamp_path(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def work(self, stage: str) -> Path:
        """The folder where a stage keeps what it needs to go on after a kill."""
        folder = self.path / "unfinished" / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def read_stamp(self, stage: str) -> dict[str, Any] | None:
        """The stamp of a stage, or None if there is none; a damaged one is set aside."""
        path = self.stamp_path(stage)
        try:
            stamp = json.loads(path.read_text(encoding="utf-8"))
            seal = stamp.pop("seal")
            if seal != hash_value(stamp):
                raise ValueError("changed by hand")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            self.set_aside(path)
            return None
        return dict(stamp)

    def done(self, stage: str, inputs: str | None, problems: list[str]) -> dict[str, Any] | None:
        """The stamp of a finished stage whose inputs are unchanged and whose files are whole; None if it must run.

        Args:
            inputs: hash of what the stage would read now; None accepts whatever it read.
            problems: gets one sentence for each damaged file, which is set aside.
        """
        before = self.stamp_path(stage).exists()
        stamp = self.read_stamp(stage)
        if stamp is None:
            if before:
                problems.append(f"stages/{stage}.json was damaged; set aside, the stage runs again")
            return None
        if inputs is not None and stamp["inputs"] != inputs:
            return None
        damaged = self.damaged(stamp)
        for name in damaged:
            problems.append(f"{name} is missing or changed since {stage} wrote it; set aside, the stage runs again")
            if (self.path / name).exists():
                self.set_aside(self.path / name)
        return None if damaged else stamp

    def stamp_is_whole(self, stage: str) -> bool:
        """Whether the stamp and its files look untouched; looks only, moves nothing."""
        try:
            stamp = json.loads(self.stamp_path(stage).read_text(encoding="utf-8"))
            seal = stamp.pop("seal")
            return bool(seal == hash_value(stamp)) and not self.damaged(stamp)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return False

    def damaged(self, stamp: dict[str, Any]) -> list[str]:
        """Names of the files of a stamp that are missing or changed."""
        found = []
        for name, expected in stamp["artifacts"].items():
            path = self.path / name
            try:
                is_whole = path.stat().st_size == expected["bytes"]
                is_whole = is_whole and sha256_of(path) == expected["sha256"]
            except OSError:
                is_whole = False
            if not is_whole:
                found.append(name)
        return found

    @contextlib.contextmanager
    def scratch(self, stage: str) -> Iterator[Path]:
        """A folder beside the artifacts for files that aren't finished; deleted in the end, whatever happens."""
        folder = self.path / f"{TEMPORARY_PREFIX}{stage}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, stage: str, inputs: str, scratch: Path | None, result: dict[str, Any], cost: dict[str, Any]) -> dict[str, Any]:
        """Moves what `scratch` holds into the cell's folder and writes the stamp last.

        A kill between the two leaves files without a stamp: the stage runs again and replaces them.
        """
        self.stamp_path(stage).unlink(missing_ok=True)
        artifacts: dict[str, dict[str, Any]] = {}
        if scratch is not None:
            for path in sorted(scratch.rglob("*")):
                if path.is_file():
                    name = path.relative_to(scratch).as_posix()
                    artifacts[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for entry in sorted(scratch.iterdir()):
                target = self.path / entry.name
                remove(target)
                os.replace(entry, target)
        stamp = {"stage": stage, "inputs": inputs, "artifacts": artifacts, "result": result, "cost": cost}
        write_text(self.stamp_path(stage), json.dumps({**stamp, "seal": hash_value(stamp)}, indent=1, sort_keys=True) + "\n")
        remove(self.path / "unfinished" / stage)
        return stamp

    # --- tidying ---------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Deletes what a killed run left half-written."""
        for folder in (self.path, self.path / "stages"):
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
                remove(leftover)
        for leftover in self.path.glob(".record.json.*.tmp"):
            remove(leftover)

    def set_aside(self, path: Path) -> Path:
        """Moves a damaged file to set-aside/ under a free name."""
        folder = self.path / "set-aside"
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        target = folder / f"{number}-{path.name}"
        os.replace(path, target)
        return target

    def forget_if_empty(self) -> None:
        """Deletes the folder of a cell that never got anywhere, and the folders above it that it made."""
        if not self.record_file.exists() and not list(self.path.glob("stages/*.json")) and not (self.path / "set-aside").exists():
            shutil.rmtree(self.path, ignore_errors=True)
            for folder in (self.path.parent, self.out):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    # --- the record ------------------------------------------------------------------------------------------------

    @property
    def record_file(self) -> Path:
        return self.path / "record.json"

    @property
    def seal_file(self) -> Path:
        return self.path / "record.seal"

    def seal_record(self) -> None:
        """Notes the hash of the record as the program wrote it, so that one edited by hand is told apart."""
        write_text(self.seal_file, sha256_of(self.record_file) + "\n")

    def record_is_sealed(self) -> bool:
        try:
            return self.seal_file.read_text(encoding="utf-8").strip() == sha256_of(self.record_file)
        except (OSError, UnicodeDecodeError):
            return False
