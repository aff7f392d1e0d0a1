"""This module keeps the state of a training run in one safetensors file, whole or absent, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "prunebench-training-1"


def write_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON facts under a temporary name, waits for the disk, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        copies = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata={"format": FORMAT, "facts": json.dumps(facts, sort_keys=True)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Reads the tensors and facts that `write_state` wrote; None where there is no such file or it can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["facts"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the moments and step counts of an optimiser, by position of the parameter."""
    state: dict[str, Tensor] = {}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{i}.{name}"] = value
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave; a parameter that had not been stepped starts anew."""
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        prefix = f"optimizer.{i}."
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if found:
            optimizer.state[parameter] = {name: tensor if name == "step" else tensor.to(parameter.device) for name, tensor in found.items()}
