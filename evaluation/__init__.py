"""Scores any causal LM by named protocols, and measures how fast it runs."""

from evaluation.catalogue import Protocol, ProtocolRequest, get_protocol, known_protocols
from evaluation.efficiency import Efficiency, measure_efficiency
from evaluation.results import Estimate, ProtocolResult, TaskResult
from evaluation.runner import ScoringFailed, evaluate
from evaluation.table import format_table

__all__ = [
    "Efficiency",
    "Estimate",
    "Protocol",
    "ProtocolRequest",
    "ProtocolResult",
    "ScoringFailed",
    "TaskResult",
    "evaluate",
    "format_table",
    "get_protocol",
    "known_protocols",
    "measure_efficiency",
]
