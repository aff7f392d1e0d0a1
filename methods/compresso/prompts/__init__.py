"""This package holds the collaborative prompts, one text file each; `prompt_text` gives one by the name of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Prompt = Literal["training", "past_tense", "none"]

_FOLDER = Path(__file__).parent


def prompt_text(name: Prompt) -> str:
    """Reads the text that goes before every training example, and as a setting before every evaluation request; '' for 'none'."""
    return "" if name == "none" else (_FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def prompt_names() -> tuple[str, ...]:
    """Lists the prompts that have a text."""
    return tuple(name for name in get_args(Prompt) if name != "none")
