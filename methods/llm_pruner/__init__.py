"""LLM-Pruner (arXiv 2305.11627): coupled groups scored by a Taylor expansion of the loss."""

from prunebench.methods.llm_pruner.pruner import LLMPruner, LLMPrunerConfig

__all__ = ["LLMPruner", "LLMPrunerConfig"]
