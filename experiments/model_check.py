"""Looks at models and data folders before anything runs: are they there and whole, and what are they, in a hash?"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from prunebench.experiments.hashing import fingerprint, hash_file, hash_value
from prunebench.experiments.suggest import shown, unknown
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.checkpoint import check_model_folder, weight_files
from prunebench.models.errors import BadInput, BudgetError, CheckpointError, PrunebenchError
from prunebench.models.loading import ACCEPTED, EMBEDDED_MODELS, EMBEDDED_PREFIX, ModelSpec, resolve_device

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# The shape of each embedded model, so that a plan needs no download.
EMBEDDED_SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }
}


def check_model(spec: ModelSpec) -> str | None:
    """Checks a model name cheaply, without loading, converting or fetching anything.

    Returns:
        a fingerprint of the weights of a local folder or file; None for a hub id or an embedded model, which name
        one set of weights by themselves.
    Raises:
        BadInput: no such model, no weights in the folder, a truncated file, a device that isn't there.
    """
    if spec.device_map is None:
        resolve_device(spec.device)
    if spec.name.startswith(EMBEDDED_PREFIX):
        name = spec.name.removeprefix(EMBEDDED_PREFIX)
        if name not in EMBEDDED_MODELS:
            raise unknown("embedded model", name, EMBEDDED_MODELS)
        return None
    if "\0" in spec.name:
        raise BadInput(f"model {shown(spec.name)} is no name; use {ACCEPTED}.")
    path = Path(spec.name).expanduser()
    try:
        if path.is_dir():
            check_model_folder(path)
            return _folder_fingerprint(path)
        if path.is_file() or spec.name.endswith(".gguf"):
            return _check_gguf(path)
    except OSError as error:
        raise CheckpointError(f"model {shown(spec.name)} can't be read: {error.strerror or error}.") from None
    if path.is_absolute() or spec.name.startswith(("./", "../", "~")):
        raise CheckpointError(f"model folder {shown(spec.name)} does not exist; use {ACCEPTED}.")
    if not HUB_ID.fullmatch(spec.name):
        raise BadInput(f"model {shown(spec.name)} is not there; use {ACCEPTED}.")
    if "/" not in spec.name:
        near = [f"{EMBEDDED_PREFIX}{name}" for name in EMBEDDED_MODELS if spec.name.lower() in name or name in spec.name.lower()]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"Unknown model {shown(spec.name)}.{hint} Use {ACCEPTED}.")
    return None


def _folder_fingerprint(folder: Path) -> str:
    parts = {path.name: fingerprint(path) for path in weight_files(folder)}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            parts[name] = hash_file(folder / name)
    return hash_value(parts)[:32]


def _check_gguf(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"GGUF file {path} does not exist; use {ACCEPTED}.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is neither a model folder nor a GGUF file (it does not begin with the letters GGUF).")
    return fingerprint(path)[:32]


def data_fingerprint(folder: Path) -> str:
    """A hash over the names and contents of a data folder.

    Raises:
        BadInput: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise BadInput(f"--data {folder} is no folder; give one with a folder of JSONL files for each task.")
    files = tuple(
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".jsonl", ".json", ".txt", ".parquet", ".arrow")
    )
    if not files:
        raise BadInput(f"--data {folder} holds no data files; expected a folder of JSONL files for each task.")
    return f"folder:{_hash_files(folder, files)[:32]}"


@functools.lru_cache(maxsize=8)
def _hash_files(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    return hash_value({name: hash_file(folder / name) for name, _, _ in files})


@functools.lru_cache(maxsize=32)
def meta_anatomy(spec: ModelSpec) -> Anatomy | None:
    """The anatomy of a model from its config alone, on the meta device; None where the config can't be had here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from prunebench.models import modeling_pruned
    from prunebench.models.checkpoint import is_pruned_config

    try:
        if spec.name.startswith(EMBEDDED_PREFIX):
            shape = dict(EMBEDDED_SHAPES[spec.name.removeprefix(EMBEDDED_PREFIX)])
            config = AutoConfig.for_model(**shape)
        else:
            path = Path(spec.name).expanduser()
            if path.is_dir() and is_pruned_config(settings := check_model_folder(path)):
                model_class = getattr(modeling_pruned, settings["architectures"][0])
                with torch.device("meta"):
                    return Anatomy.from_model(model_class(model_class.config_class.from_pretrained(path)))
            if path.is_file() or spec.trust_remote_code:
                return None
            config = AutoConfig.from_pretrained(path if path.is_dir() else spec.name, revision=spec.revision)
        with torch.device("meta"):
            return Anatomy.from_model(AutoModelForCausalLM.from_config(config))
    except PrunebenchError:
        raise
    except Exception:  # whatever transformers makes of a config; loading the model will say it properly
        return None


def check_sparsity(spec: ModelSpec, sparsity: float, basis: str) -> None:
    """Refuses a sparsity that heads and channels of all layers together can't give up.

    Raises:
        BudgetError: names the sparsity, the model and the largest one that is possible.
    """
    anatomy = meta_anatomy(spec)
    if anatomy is None:
        return
    budget = Budget(sparsity, "blocks" if basis == "blocks" else "total")
    try:
        solve_uniform(anatomy, budget)
    except BudgetError as error:
        if "impossible" in str(error):
            raise BudgetError(f"grid.sparsity {sparsity:g} for model {spec.name}: {error}") from None
