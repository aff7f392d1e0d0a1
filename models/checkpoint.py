"""Saves and loads model folders: safetensors, `config.json`, the tokenizer, and the modelling file of pruned models."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prunebench.models import modeling_pruned
from prunebench.models.errors import CheckpointError
from prunebench.models.slice import MODELING_FILE

PROVENANCE_FILE = "prunebench.json"


def save_pruned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, provenance: dict[str, Any]) -> None:
    """Writes a model (pruned or dense) to `folder`, whole or not at all; an earlier folder of that name is replaced.

    A pruned folder loads with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` where prunebench
    is not installed, and with `load_folder` here.

    Args:
        provenance: JSON-serialisable facts about how the model came to be, stored as `prunebench.json`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if is_pruned_config(model.config.to_dict()):
            shutil.copyfile(modeling_pruned.__file__, temporary / f"{MODELING_FILE}.py")
        (temporary / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2, sort_keys=True) + "\n")
        temporary.chmod(0o755)
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, folder: Path) -> None:
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
        os.rename(folder, old / "folder")
        os.rename(new, folder)
        shutil.rmtree(old)
    else:
        os.rename(new, folder)


def load_pruned(
    folder: Path, *, dtype: torch.dtype | None = None, with_tokenizer: bool = True, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Loads a folder that `save_pruned` wrote, or any other local model folder, in eval mode.

    Args:
        dtype: None keeps the dtype of the file.
        with_tokenizer: False returns None for the tokenizer, which the folder then need not have.
        options: passed to `from_pretrained` (device_map, attn_implementation, trust_remote_code).

    Raises:
        CheckpointError: no such folder, no config, no weights, truncated or mismatching weights, no tokenizer.
    """
    settings = check_model_folder(folder)
    architecture = (settings.get("architectures") or [""])[0]
    model: Any
    report: Any
    options["dtype"] = dtype if dtype is not None else "auto"
    try:
        if is_pruned_config(settings):
            model_class = getattr(modeling_pruned, architecture)
            config = model_class.config_class.from_pretrained(folder)
            model, report = model_class.from_pretrained(folder, config=config, output_loading_info=True, **options)
        else:
            trust = bool(options.get("trust_remote_code", False))
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
            model, report = cast(Any, AutoModelForCausalLM.from_pretrained(folder, config=config, output_loading_info=True, **options))
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"model folder {folder} can't be loaded: {_first_line(error)}") from error
    if report["missing_keys"]:  # transformers would go on with random weights
        raise CheckpointError(f"the weights in {folder} lack {sorted(report['missing_keys'])[0]}, which its config.json asks for.")
    if not with_tokenizer:
        return model.eval(), None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"model folder {folder} has no tokenizer that can be loaded: {_first_line(error)}") from error
    return model.eval(), tokenizer


def is_pruned_config(settings: dict[str, Any]) -> bool:
    """Whether a `config.json` describes a model that prunebench sliced."""
    return "pruning" in settings and str((settings.get("architectures") or [""])[0]).startswith("Pruned")


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Checks that a model folder has a readable config and whole weights, without loading them.

    Returns:
        the parsed `config.json`.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist; give a folder, a .gguf file, a hub id or an embedded model.")
    config = folder / "config.json"
    try:
        settings = json.loads(config.read_text())
    except OSError:
        raise CheckpointError(f"model folder {folder} has no config.json; it is not a transformers model folder.") from None
    except ValueError as error:
        raise CheckpointError(f"{config} is not valid JSON ({error}).") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise CheckpointError(f"{config} names no model_type; it is not a transformers model config.")
    weights = weight_files(folder)
    if not weights:
        raise CheckpointError(f"model folder {folder} has no weights; looked for *.safetensors files.")
    for file in weights:
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"weight file {file} is truncated or damaged ({_first_line(error)}); fetch it again.") from error
    return settings


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        CheckpointError: the index names a shard that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not a weight index ({_first_line(error)}).") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"model folder {folder} lacks the weight file {missing[0]} that its index names.")
        return [folder / name for name in names]
    return sorted(folder.glob("model*.safetensors"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
