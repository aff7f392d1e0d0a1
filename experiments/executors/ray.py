"""Cells as Ray tasks with declared CPUs, GPUs and memory. Ray schedules; the output folder must be one that all nodes see."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunebench.experiments.config import RunSettings
from prunebench.experiments.executors.endings import STOPPED, Elsewhere, first_line
from prunebench.experiments.executors.environment import python_path
from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import View
from prunebench.experiments.stopping import Stop
from prunebench.models.errors import BadInput

POLL_SECONDS = 1.0
RETRIES_AFTER_A_CRASH = 3
SUBMITTED_AHEAD = 64
KNOCK_SECONDS = 10.0
HERE = "local"


class RayExecutor:
    """Each cell one Ray task; a task whose worker or node dies is given to another one and goes on from its stages."""

    def __init__(self, settings: RunSettings) -> None:
        try:
            import ray
        except ImportError:
            raise BadInput("run.executor is ray, but ray is not installed; install prunebench[cluster].") from None
        self.ray: Any = ray
        self.settings = settings
        self.started_here = False
        self._connect()

    def _connect(self) -> None:
        """Joins the cluster that run.address or, as for any Ray program, RAY_ADDRESS names; starts one here otherwise.

        Ray by itself would join the cluster that some earlier `ray start` left a note about, or wait for it in vain.
        """
        ray = self.ray
        if ray.is_initialized():
            return
        address = self.settings.address or os.environ.get("RAY_ADDRESS") or HERE
        name = f"run.address = {address!r}" if self.settings.address else f"RAY_ADDRESS = {address!r}"
        try:
            _knock(_found(address))
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address == HERE else None,
                runtime_env={"env_vars": worker_environment(joins=address != HERE)},
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            if address == HERE:
                raise BadInput(f"Ray could not start on this machine ({reason}).") from None
            raise BadInput(f"no Ray cluster answers at {name} ({reason}); start one with 'ray start --head'.") from None
        self.started_here = True
        if address == HERE:
            try:
                check_fits(self.settings, ray.cluster_resources())
            except BadInput:
                ray.shutdown()
                raise

    def execute(self, jobs: Sequence[Job], view: View, stop: Stop) -> Iterator[Outcome]:
        self._connect()
        ray, settings = self.ray, self.settings
        options: dict[str, Any] = {
            "num_cpus": settings.cpus_per_cell,
            "num_gpus": settings.gpus_per_cell,
            "max_retries": RETRIES_AFTER_A_CRASH,
            "retry_exceptions": False,
        }
        if settings.memory_gb_per_cell is not None:
            options["memory"] = int(settings.memory_gb_per_cell * 1e9)
        from prunebench.experiments.executors.worker import run_job_text

        task = ray.remote(run_job_text).options(**options)
        waiting = list(jobs)
        running: dict[Any, Elsewhere] = {}
        try:
            while running or (waiting and not stop.is_asked):
                while waiting and len(running) < SUBMITTED_AHEAD and not stop.is_asked:
                    cell = Elsewhere(waiting.pop(0))
                    running[task.remote(cell.job.model_dump_json())] = cell
                finished, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                for reference in finished:
                    yield self._outcome(reference, running.pop(reference))
                if stop.is_asked:
                    yield from self._stop(running)
                    return
                for reference, cell in list(running.items()):
                    cell.follow(view)
                    if cell.took_longer_than(settings.cell_minutes):
                        ray.cancel(reference, force=True)
                        del running[reference]
                        yield cell.end("failed", f"ended: the cell took more than run.cell_minutes = {settings.cell_minutes:g}")
                view.tick()
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if self.started_here:
                ray.shutdown()
                self.started_here = False

    def _stop(self, running: dict[Any, Elsewhere]) -> Iterator[Outcome]:
        """Ends the tasks; those that were at work get a row, those that waited their turn are left as they are."""
        at_work = [cell for cell in running.values() if cell.at_work_since is not None]
        for reference in running:
            self.ray.cancel(reference, force=True)
        running.clear()
        for cell in at_work:
            yield cell.end("interrupted", STOPPED)

    def _outcome(self, reference: Any, cell: Elsewhere) -> Outcome:
        exceptions = self.ray.exceptions
        try:
            return Outcome.model_validate_json(self.ray.get(reference))
        except exceptions.OutOfMemoryError as error:
            return cell.end("out_of_memory", f"the Ray worker was ended for memory: {first_line(error)}")
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.ObjectLostError) as error:
            return cell.end("failed", f"the Ray worker died {RETRIES_AFTER_A_CRASH + 1} times: {first_line(error)}")
        except exceptions.RayTaskError as error:
            return cell.end("failed", f"the Ray task raised {first_line(error.cause or error)}")
        except exceptions.RayError as error:
            return cell.end("failed", f"Ray could not run the cell: {first_line(error)}")


def worker_environment(*, joins: bool) -> dict[str, str]:
    """What Ray workers get: where prunebench and the user's own modules are, and how their OpenMP threads wait.

    Args:
        joins: the workers belong to a cluster that was started elsewhere, with a PYTHONPATH of its own that they keep.
    """
    path = python_path()
    if joins:
        path = f"{path}{os.pathsep}${{PYTHONPATH}}" if path else "${PYTHONPATH}"
    return {"PYTHONPATH": path, "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]}  # set by prunebench unless the user did


def check_fits(settings: RunSettings, found: Mapping[str, float]) -> None:
    """Refuses a cell that this machine alone will never have room for; Ray would wait for another node without a word.

    Raises:
        BadInput: one cell asks for more CPUs, GPUs or memory than Ray found.
    """
    asked = {
        "cpus_per_cell": (settings.cpus_per_cell, found.get("CPU", 0)),
        "gpus_per_cell": (settings.gpus_per_cell, found.get("GPU", 0)),
        "memory_gb_per_cell": (settings.memory_gb_per_cell or 0, found.get("memory", 0) / 1e9),
    }
    for name, (amount, there) in asked.items():
        if amount > there:
            raise BadInput(f"run.{name} = {amount:g}, but Ray found {there:.3g} on this machine; ask for less or join a cluster.")


def _found(address: str) -> str:
    """`auto` as the address that Ray would take for it.

    Raises:
        ConnectionError: no cluster was started on this machine.
    """
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address

    return str(canonicalize_bootstrap_address(address))


def _knock(address: str) -> None:
    """Sees in seconds whether anything listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError, ValueError: nothing does, or PORT is no number.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
