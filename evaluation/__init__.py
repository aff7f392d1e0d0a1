"""Scores any causal LM by named protocols, and measures how fast it runs."""

if __name__ != "prunebench.evaluation":
    raise ImportError("import prunebench.evaluation, not evaluation: the folders at the top of the repository have no names of their own.")

from prunebench.evaluation.catalogue import Protocol, ProtocolRequest, get_protocol, known_protocols
from prunebench.evaluation.efficiency import Efficiency, measure_efficiency
from prunebench.evaluation.results import Estimate, ProtocolResult, TaskResult
from prunebench.evaluation.runner import ScoringFailed, check_form, evaluate
from prunebench.evaluation.table import format_table
from prunebench.evaluation.task_result import KEPT

__all__ = [
    "KEPT",
    "Efficiency",
    "Estimate",
    "Protocol",
    "ProtocolRequest",
    "ProtocolResult",
    "ScoringFailed",
    "TaskResult",
    "check_form",
    "evaluate",
    "format_table",
    "get_protocol",
    "known_protocols",
    "measure_efficiency",
]
