"""The files of a model folder: which are read, what they hold, and their hash. Loader, checks and identity share this list."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from prunebench.models.errors import CheckpointError, text_of

PROVENANCE_FILE = "prunebench.json"
WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"

READ_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab")
"""Ends of the names under which transformers looks for configs, tokenizers and chat templates."""
NEVER_READ = (
    PROVENANCE_FILE,
    "requirements.txt",
    "LICENSE.txt",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "pytorch_model.bin.index.json",
)

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PACKED_DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8", "I16", "U16", "I32", "U32")
"""What quantised weights are stored in."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a weight file: its dtype in the words of safetensors (F32, BF16, ...), its shape, and the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True)
class ModelFiles:
    """What a loader reads of a model folder, and nothing else.

    Attributes:
        config: the parsed `config.json`.
        weights: safetensors files, sorted by name; others: every other file that is read, sorted by name.
        tensors: what the weight files hold, by name.
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    others: tuple[Path, ...]
    tensors: dict[str, TensorInfo]

    @cached_property
    def sha256(self) -> str:
        """One SHA-256 over the names and bytes of every file that is read: the identity of the model."""
        digest = hashlib.sha256()
        for file in sorted((*self.weights, *self.others)):
            digest.update(f"{file.relative_to(self.folder).as_posix()} {sha256_of(file)}\n".encode())
        return digest.hexdigest()

    @property
    def float_dtypes(self) -> dict[torch.dtype, int]:
        """Entries stored in each floating-point dtype, the most common first."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in FLOAT_DTYPES:
                dtype = FLOAT_DTYPES[tensor.dtype]
                counts[dtype] = counts.get(dtype, 0) + torch.Size(tensor.shape).numel()
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def model_files(folder: Path, *, trust_remote_code: bool = False) -> ModelFiles:
    """Lists what a loader reads of `folder`, and refuses every folder in which that could be told in two ways.

    Args:
        trust_remote_code: code files that the configs name are read, too.

    Raises:
        CheckpointError: no folder, no config, no or damaged or contradictory weights, weights that are quantised,
            leftovers of an adapter; names the file and what to do.
    """
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist; give a folder, a .gguf file, a hub id or an embedded model.")
    config = read_config(folder)
    names = sorted(path.name for path in folder.iterdir())
    adapter = next((name for name in names if name == "adapter_config.json" or name.startswith("adapter_model.")), None)
    weights = _weight_files(folder, names, adapter)
    _refuse_quantised(folder, config)
    if adapter is not None:
        raise CheckpointError(
            f"model folder {folder} holds a whole model and the adapter file {adapter}, which a loader would put on top of it; "
            "remove the adapter's files if it is merged already, else merge it first."
        )
    if "transformers_weights" in config:
        raise CheckpointError(f"{folder / 'config.json'} sets transformers_weights; remove it: weights are read from {WEIGHTS}.")
    tensors = _tensors(folder, weights)
    packed = next((name for name, t in tensors.items() if t.dtype in PACKED_DTYPES and name.endswith("weight")), None)
    if packed is not None:
        raise CheckpointError(
            f"the weights in {folder} are quantised ({packed} is {tensors[packed].dtype}); give the float weights that they were made from."
        )
    return ModelFiles(folder, config, tuple(weights), tuple(_other_files(folder, names, config, trust_remote_code)), tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model folder.

    Raises:
        CheckpointError: it is missing, not JSON, or no model's.
    """
    config = folder / "config.json"
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except OSError:
        hint = " It holds an adapter only: merge it into its base model first." if (folder / "adapter_config.json").exists() else ""
        raise CheckpointError(f"model folder {folder} has no config.json; it is not a transformers model folder.{hint}") from None
    except ValueError as error:
        raise CheckpointError(f"{config} is not valid JSON ({error}).") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise CheckpointError(f"{config} names no model_type; it is not a transformers model config.")
    return settings


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    nested = [value for value in config.values() if isinstance(value, dict)]
    for settings in (config, *nested):
        found = settings.get("quantization_config") or settings.get("compression_config")
        if found:
            method = found.get("quant_method", found.get("format")) if isinstance(found, dict) else None
            raise CheckpointError(
                f"model folder {folder} holds quantised weights ({method or 'by a method that its config.json does not name'}); "
                "give the float weights that they were made from."
            )


def _weight_files(folder: Path, names: list[str], adapter: str | None) -> list[Path]:
    shards = [name for name in names if name.startswith("model-") and name.endswith(".safetensors")]
    if WEIGHT_INDEX in names:
        if WEIGHTS in names:
            raise CheckpointError(f"model folder {folder} holds both {WEIGHTS} and {WEIGHT_INDEX}; remove the one that is not the model.")
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if WEIGHTS in names:
        return [folder / WEIGHTS]
    if shards:
        raise CheckpointError(f"model folder {folder} holds the shard {shards[0]}, but no {WEIGHT_INDEX} that names it; fetch the index.")
    if adapter is not None:
        raise CheckpointError(f"model folder {folder} holds an adapter only ({adapter}); merge it into its base model first.")
    pickled = next((name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
    hint = f" {pickled} is no such file: convert it, since pickles are not read." if pickled else ""
    raise CheckpointError(f"model folder {folder} has no weights; looked for {WEIGHTS} or {WEIGHT_INDEX}.{hint}")


def _weight_map(folder: Path) -> dict[str, str]:
    index = folder / WEIGHT_INDEX
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): str(file) for tensor, file in found.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a weight index ({one_line(error)}).") from error
    if not names:
        raise CheckpointError(f"{index} names no tensors; fetch it again.")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the weight file {name!r}; only .safetensors files of the same folder are read.")
        if not (folder / name).is_file():
            raise CheckpointError(f"model folder {folder} lacks the weight file {name} that its index names.")
    return names


def _tensors(folder: Path, weights: list[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in weights:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    if name in tensors:
                        raise CheckpointError(f"the tensor {name} stands in both {tensors[name].file.name} and {file.name} of {folder}.")
                    part = opened.get_slice(name)
                    tensors[name] = TensorInfo(str(part.get_dtype()), tuple(part.get_shape()), file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"weight file {file} is truncated or damaged ({one_line(error)}); fetch it again.") from error
    if (folder / WEIGHT_INDEX).is_file():
        named = _weight_map(folder)
        wrong = sorted(name for name in named.keys() | tensors.keys() if name not in named or name not in tensors)
        wrong = wrong or sorted(name for name, file in named.items() if tensors[name].file.name != file)
        if wrong:
            raise CheckpointError(f"{folder / WEIGHT_INDEX} and the weight files disagree about the tensor {wrong[0]}; fetch both again.")
    return tensors


def _other_files(folder: Path, names: list[str], config: dict[str, Any], trust_remote_code: bool) -> list[Path]:
    files = [folder / name for name in names if name.endswith(READ_SUFFIXES) and name not in NEVER_READ]
    files += (folder / "additional_chat_templates").glob("*.jinja")
    if trust_remote_code:
        for path in [path for path in files if path.name in ("config.json", "tokenizer_config.json")]:
            _refuse_code_elsewhere(path)
        files += folder.rglob("*.py")
    return sorted(path for path in files if path.is_file())


def _refuse_code_elsewhere(path: Path) -> None:
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {}
    except (OSError, ValueError, AttributeError):
        return  # its reader says what is wrong with it
    for value in named.values() if isinstance(named, dict) else ():
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str) and "--" in reference:
                raise CheckpointError(
                    f"{path} takes its code from {reference.partition('--')[0]!r}; copy that code into the folder, so that the model "
                    "is all in one place."
                )


# --- hashes ----------------------------------------------------------------------------------------------------------

REMEMBERED_BYTES = 1 << 20
"""Smaller files are hashed each time."""
SETTLED_SECONDS = 2.0
"""A file changed so recently may change again within one tick of the file system's clock, so its hash isn't remembered."""


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of all bytes of a file; remembered while its size, times and inode stay the same.

    Raises:
        OSError: the file can't be read.
    """
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return _hash(path)
    facts = (path.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    key = tuple(map(str, facts))
    with contextlib.suppress(sqlite3.Error, OSError):  # without a cache folder that can be written, hashing is only slower
        with _memory() as memory:
            found = memory.execute(f"SELECT sha256 FROM hashes WHERE {_WHERE}", key).fetchone()
        if found is not None:
            return str(found[0])
    digest = _hash(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
        with contextlib.suppress(sqlite3.Error, OSError), _memory() as memory:
            memory.execute("DELETE FROM hashes WHERE path = ?", key[:1])
            memory.execute("INSERT INTO hashes VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, digest))
    return digest


_COLUMNS = ("path", "size", "mtime_ns", "ctime_ns", "inode", "device")
_WHERE = " AND ".join(f"{column} = ?" for column in _COLUMNS)


@contextlib.contextmanager
def _memory() -> Any:
    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / "hashes.sqlite", timeout=10)
    try:
        with connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS hashes ({', '.join(_COLUMNS)}, sha256)")
            yield connection
    finally:
        connection.close()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """Where fetched assets, converted models and remembered hashes are kept: $PRUNEBENCH_CACHE, else ~/.cache/prunebench."""
    configured = os.environ.get("PRUNEBENCH_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "prunebench"


def one_line(error: BaseException) -> str:
    """An error's message in one line of at most 300 characters; its class where it says nothing."""
    text = " ".join(text_of(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
