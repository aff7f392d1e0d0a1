"""Looks at models and data folders before anything runs: are they there and whole, and what are they, in a hash?"""

from __future__ import annotations

import re
from pathlib import Path

from prunebench.experiments.hashing import hash_value
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.errors import BadInput, BudgetError, CheckpointError
from prunebench.models.files import sha256_of
from prunebench.models.loading import (
    ACCEPTED,
    EMBEDDED_MODELS,
    EMBEDDED_PREFIX,
    ModelSpec,
    check_gguf,
    check_loads,
    local_files,
    resolve_device,
)
from prunebench.models.suggest import shown, unknown

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FINGERPRINT_CHARS = 32
DATA_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet", ".arrow")


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
        if path.is_file() or spec.name.endswith(".gguf"):
            check_gguf(path)
            return sha256_of(path)[:FINGERPRINT_CHARS]
        files = local_files(spec)
        if files is not None:
            return files.sha256[:FINGERPRINT_CHARS]
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


def data_fingerprint(folder: Path) -> str:
    """A hash over the names and contents of a data folder.

    Raises:
        BadInput: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise BadInput(f"--data {folder} is no folder; give one with a folder of JSONL files for each task.")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in DATA_SUFFIXES]
    if not files:
        raise BadInput(f"--data {folder} holds no data files; expected a folder of JSONL files for each task.")
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    return f"folder:{hash_value(hashes)[:FINGERPRINT_CHARS]}"


def meta_anatomy(spec: ModelSpec) -> Anatomy | None:
    """The anatomy of a model without its weights; None where its files aren't here yet.

    Raises:
        BadInput: the model can't be loaded, or can't be pruned.
    """
    model = check_loads(spec)
    return None if model is None else Anatomy.from_model(model)


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
