"""Runs one job in a process that another one started: job and outcome are JSON, on this machine or another."""

from __future__ import annotations

from prunebench.experiments.job import Job, Outcome
from prunebench.experiments.progress import Emit
from prunebench.experiments.stopping import Stop


def run_job(job: Job, emit: Emit, stop: Stop) -> Outcome:
    """Prepares this process for one job (threads, plugins) and runs it."""
    import torch

    from prunebench.experiments.plugins import load_plugins
    from prunebench.experiments.progress import quiet_libraries

    quiet_libraries()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    load_plugins(job.plugins)
    from prunebench.experiments.run_cell import run_cell

    return run_cell(job, emit, stop)


def run_job_text(text: str) -> str:
    """`run_job` for another machine: JSON in, JSON out; progress goes to the cell's progress.json."""
    outcome = run_job(Job.model_validate_json(text), lambda event: None, Stop())
    return outcome.model_dump_json()
