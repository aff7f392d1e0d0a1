"""Takes one cell along its road, as far as it isn't there yet, and writes its record."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunebench.experiments import stages
from prunebench.experiments.cell_folder import CellFolder, output_error, remove, write_text
from prunebench.experiments.config import Part
from prunebench.experiments.hashing import hash_value
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import Emit, duration, gigabytes
from prunebench.experiments.recording import build_record, unfinished_record
from prunebench.experiments.results import Evaluated, Measured, Pruned, Recovered, Sliced
from prunebench.experiments.stopping import Stop, Stopped
from prunebench.leaderboard.record import Record, read_record, write_record
from prunebench.models.errors import PrunebenchError, deed, is_out_of_memory, text_of
from prunebench.models.memory import peak_memory_bytes, reset_peak_memory

HEARTBEAT_SECONDS = 1.0
FINAL = ("done", "skipped")


def run_cell(job: Job, emit: Emit, stop: Stop) -> Outcome:
    """Runs one cell, or what is left of it. Returns how it ended; raises only what ends the whole process."""
    folder = CellFolder(Path(job.out), job.cell.id)
    try:
        with folder.lock() as mine:
            if not mine:
                return Outcome(cell_id=job.cell.id, status="busy")
            return _CellRun(job, folder, emit, stop).run()
    except OSError as error:
        known = output_error(Path(job.out), error)
        if known is None:
            raise
        return Outcome(cell_id=job.cell.id, status="output_error", reason=str(known))


def finished_record(folder: CellFolder, statuses: tuple[str, ...] = FINAL) -> Record | None:
    """The record of a cell that needs no more work, if it is whole and as the program wrote it."""
    if not folder.record_is_sealed():
        return None
    try:
        record = read_record(folder.record_file)
    except Exception:  # a sealed record of another version reads as none
        return None
    return record if record.run.status in statuses else None


class _CellRun:
    def __init__(self, job: Job, folder: CellFolder, emit: Emit, stop: Stop) -> None:
        self.job, self.folder, self.emit_event, self.stop = job, folder, emit, stop
        self.stage_name = "start"
        self.problems: list[str] = []
        self.stamps: dict[str, dict[str, Any]] = {}
        self.started_at = datetime.now(UTC)
        self.last_heartbeat = 0.0
        self.work = stages.Work(job, folder, self._progress)

    # --- telling ---------------------------------------------------------------------------------------------------

    def _emit(self, **event: Any) -> None:
        self.emit_event({"cell": self.job.cell.id, **event})

    def _progress(self, label: str, done: int, total: int) -> None:
        self._emit(kind="progress", label=str(label), done=int(done), total=int(total))
        self._heartbeat({"stage": self.stage_name, "label": str(label), "done": int(done), "total": int(total)})
        self.stop.safe_point()

    def _heartbeat(self, what: dict[str, Any]) -> None:
        """progress.json says to `status`, and to a driver elsewhere, what this cell does. Losing it costs nothing."""
        if time.monotonic() - self.last_heartbeat < HEARTBEAT_SECONDS:
            return
        self.last_heartbeat = time.monotonic()
        with contextlib.suppress(OSError):
            temporary = self.folder.path / ".tmp-progress"
            temporary.write_text(json.dumps({**what, "pid": os.getpid()}), encoding="utf-8")
            os.replace(temporary, self.folder.path / "progress.json")

    def _problem(self, text: str) -> None:
        self._emit(kind="problem", text=text)

    # --- the road --------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        cell = self.job.cell
        self.folder.tidy()
        record = finished_record(self.folder)
        if record is not None and not self._damaged_artifacts():
            self._drop_checkpoints()
            return Outcome(cell_id=cell.id, status=record.run.status, reason=record.run.reason)
        if self.folder.record_file.exists() and not self.folder.record_is_sealed():
            aside = self.folder.set_aside(self.folder.record_file)
            self._problem(f"record.json was damaged or changed by hand; kept as {aside.relative_to(self.folder.path)}, the cell is redone")
        try:
            self._road()
        except Stopped:
            return self._end("interrupted", f"stopped by the user in stage {self.stage_name}; the same command goes on from there")
        except stages.Unsupported as error:
            return self._end("skipped", first_line(text_of(error)))
        except stages.ModelNotLoaded as error:
            self.folder.forget_if_empty()
            return Outcome(cell_id=cell.id, status="bad_input", reason=str(error))
        except MemoryError as error:
            let_go(error)
            return self._end("out_of_memory", f"{self.stage_name} took more memory than there is")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in a method ends its cell, not the run
            return self._failure(error)
        if self.job.until == "prune":
            return Outcome(cell_id=cell.id, status="pruned")
        return Outcome(cell_id=cell.id, status="done")

    def _damaged_artifacts(self) -> bool:
        """Whether a stage of a finished cell must run again because a file of it was damaged."""
        problems: list[str] = []
        for path in sorted((self.folder.path / "stages").glob("*.json")):
            self.folder.done(path.stem, None, problems)
        for problem in problems:
            self._problem(problem)
        return bool(problems)

    def _failure(self, error: BaseException) -> Outcome:
        known = output_error(Path(self.job.out), error)
        if known is not None:
            return Outcome(cell_id=self.job.cell.id, status="output_error", reason=str(known))
        text = text_of(error)
        if is_out_of_memory(error):
            let_go(error)
            return self._end("out_of_memory", f"{self.stage_name} took more memory than there is: {first_line(text)}")
        if isinstance(error, PrunebenchError):
            return self._end("failed", f"{self.stage_name}: {first_line(text)}")
        with contextlib.suppress(OSError):
            said = "".join(traceback.format_exception(error))
            write_text(self.folder.path / "error.txt", said.encode("utf-8", "backslashreplace").decode())
        where = traceback.extract_tb(error.__traceback__)[-1]
        who = f"recovery {self.job.cell.recovery}" if self.stage_name == "recover" else self.job.cell.method
        reason = f"{who} {deed(error)} in {self.stage_name}: {first_line(text)}"
        return self._end("failed", f"{reason} ({Path(where.filename).name}, line {where.lineno})")

    def _end(self, status: str, reason: str) -> Outcome:
        """Writes the record of a cell that didn't get through."""
        self.work.forget_models()
        record = unfinished_record(self.job, status, reason, self.stamps, self.started_at)
        try:
            self._write_record(record)
        except Exception as error:
            known = output_error(Path(self.job.out), error)
            if known is None:
                raise
            return Outcome(cell_id=self.job.cell.id, status="output_error", reason=str(known))
        return Outcome(cell_id=self.job.cell.id, status=record.run.status, reason=reason)

    def _write_record(self, record: Record) -> None:
        write_record(Path(self.job.out), record)
        self.folder.seal_record()
        (self.folder.path / "progress.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it stays while a stage has something to go on from
            (self.folder.path / "unfinished").rmdir()

    def _road(self) -> None:
        cell, job = self.job.cell, self.job
        write_text(self.folder.path / "cell.json", json.dumps(cell.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
        checkpoint_hash = hash_value(cell.model.model_dump(mode="json"))
        if not cell.is_dense:
            if job.needs_checkpoint and not self.folder.stamp_path("slice").exists():
                raise PrunebenchError("this cell has no pruned checkpoint yet; run the verb prune for it first")
            prune = self._stage("prune", cell.prune_inputs(), stages.prune)
            kept = {name: prune["artifacts"][name]["sha256"] for name in sorted(prune["artifacts"])}
            slice_inputs = {"artifacts": kept, "model": cell.model.model_dump(mode="json")}
            pruned = Pruned.model_validate(prune["result"])
            sliced = self._stage("slice", slice_inputs, lambda work, scratch: stages.slice_(work, scratch, pruned))
            checkpoint_hash = hash_value(sliced["artifacts"])
            if cell.recovery != "none" and pruned.unstructured_zeros is not None:
                raise stages.Unsupported(
                    f"recovery {cell.recovery} would fill the zeros that {cell.method} set; it has no smaller shape to keep"
                )
            if cell.recovery != "none":
                recover = self._stage("recover", {**cell.recover_inputs(), "checkpoint": checkpoint_hash}, stages.recover)
                checkpoint_hash = hash_value(recover["artifacts"])
        if job.until == "prune":
            self.work.forget_models()
            return
        self._stage("evaluate", {**cell.evaluate_inputs(), "checkpoint": checkpoint_hash}, stages.evaluate)
        if cell.efficiency.enabled:
            self._stage("efficiency", {**cell.efficiency_inputs(), "checkpoint": checkpoint_hash}, stages.efficiency)
        self.work.forget_models()
        self.stage_name = "record"
        self._write_record(build_record(job, self.stamps, self.started_at, self.problems))
        self._drop_checkpoints()

    def _drop_checkpoints(self) -> None:
        """Gives the disk back where the run keeps records only; the stages would make the same files again."""
        if self.job.keep_checkpoints or self.job.until != "record":
            return
        for stage, names in (("slice", [stages.CHECKPOINT]), ("recover", [stages.RECOVERED])):
            self.folder.stamp_path(stage).unlink(missing_ok=True)
            for name in names:
                remove(self.folder.path / name)

    def _stage(self, name: str, inputs: dict[str, Any], act: Callable[[stages.Work, Path], Part]) -> dict[str, Any]:
        """The stamp of a stage: from an earlier run, from a cell with the same inputs, or made now."""
        self.stop.safe_point()
        self.stage_name = name
        key = hash_value(inputs)
        found: list[str] = []
        stamp = self.folder.done(name, key, found)
        for problem in found:
            self._problem(problem)
        self.problems += found
        if stamp is None and name in ("prune", "slice", "recover"):
            stamp = self._from_sibling(name, key)
        if stamp is None:
            self._emit(kind="stage", stage=name)
            with self.folder.scratch(name) as scratch:
                reset_peak_memory()
                started = time.monotonic()
                result = act(self.work, scratch)
                spent = {
                    "seconds": time.monotonic() - started,
                    "peak_memory_bytes": peak_memory_bytes(),
                    "tokens": getattr(result, "tokens", None),
                }
                stamp = self.folder.finish(name, key, scratch, result.model_dump(mode="json"), spent)
            self._emit(kind="line", text=summary(result, self.job, stamp["cost"]))
        self.stamps[name] = stamp
        return stamp

    def _from_sibling(self, name: str, key: str) -> dict[str, Any] | None:
        """The same stage of another cell (one that differs in its protocols, say), hard-linked from there."""
        for path in sorted(self.folder.path.parent.glob(f"*/stages/{name}.json")):
            sibling = CellFolder(self.folder.out, path.parent.parent.name)
            if sibling.cell_id == self.folder.cell_id:
                continue
            try:
                stamp = json.loads(path.read_text(encoding="utf-8"))
                seal = stamp.pop("seal")
                usable = stamp["inputs"] == key and seal == hash_value(stamp) and not sibling.damaged(stamp)
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                continue
            if not usable:
                continue
            with self.folder.scratch(name) as scratch:
                try:
                    for artifact in stamp["artifacts"]:
                        (scratch / artifact).parent.mkdir(parents=True, exist_ok=True)
                        os.link(sibling.path / artifact, scratch / artifact)
                except OSError:
                    continue
                copied = self.folder.finish(name, key, scratch, stamp["result"], stamp["cost"])
            if copied["artifacts"] == stamp["artifacts"]:
                self._emit(kind="line", text=f"{name} taken from cell {sibling.cell_id}, which has the same inputs")
                return copied
            self.folder.stamp_path(name).unlink(missing_ok=True)
        return None


def let_go(error: BaseException) -> None:
    """Frees what the frames of an exception hold: the record of an out-of-memory cell needs some memory itself."""
    current: BaseException | None = error
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        current.__traceback__ = None
        current = current.__context__
    gc.collect()


def first_line(text: str) -> str:
    """The first line of an error message, at most 300 characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    return line if len(line) <= 300 else line[:297] + "..."


def millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M" if count >= 1e5 else str(count)


def summary(result: Part, job: Job, cost: dict[str, Any]) -> str:
    """One line a stage, with its cost."""
    cell = job.cell
    spent = f"{duration(cost['seconds'])} | peak {gigabytes(cost['peak_memory_bytes'])}"
    match result:
        case Pruned():
            counts = f"{millions(result.size.dense.total)} -> {millions(result.size.kept.total)} params"
            return f"pruned {cell.method} {cell.sparsity:.2f} | {counts} | {spent}"
        case Sliced():
            return f"sliced | {result.disk_bytes / 1e6:.0f} MB on disk, reload equals memory | {spent}"
        case Recovered():
            return f"recovered {cell.recovery} | {result.tokens} tokens | {spent}"
        case Evaluated():
            return f"evaluated {scores_text(result.scores)} | {spent}"
        case Measured():
            return f"measured {speed_text(result.efficiency)} | {spent}"
    raise TypeError(f"no stage gives a {type(result).__name__}")


def scores_text(scores: Sequence[dict[str, Any]]) -> str:
    parts = []
    for score in scores:
        mean = score.get("mean")
        if mean:
            parts.append(f"{score['protocol']} {mean['value']:.3f} ± {mean['stderr'] or 0:.3f}")
        else:
            parts += [f"{task['task']} {task['metric']} {task['value']:.3f}" for task in score["tasks"]]
    return ", ".join(parts)


def speed_text(efficiency: dict[str, Any]) -> str:
    found = [
        f"{label} {efficiency[key]:.0f} tokens/s"
        for label, key in (("prefill", "prefill_tokens_per_second"), ("decode", "decode_tokens_per_second"))
        if isinstance(efficiency.get(key), int | float)
    ]
    return ", ".join(found) or "speed"
