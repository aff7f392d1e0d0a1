"""Loads what is to be pruned: a hub id, a folder, a GGUF file or an embedded model."""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prunebench.models import assets
from prunebench.models.checkpoint import load_pruned, weight_files
from prunebench.models.errors import AssetError, BadInput, CheckpointError

log = logging.getLogger(__name__)

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_MODELS = {"smollm2-135m-instruct": assets.embedded_model_gguf}
ACCEPTED = "a hub id (ORG/NAME), a model folder, a .gguf file, or " + ", ".join(EMBEDDED_PREFIX + n for n in EMBEDDED_MODELS)


class ModelSpec(BaseModel):
    """Which model to load, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="hub id, folder, .gguf file or embedded:NAME")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("auto", description="'auto' (the GPU if there is one, else the CPU), 'cpu', 'cuda', 'cuda:1', ...")
    device_map: str | None = Field(None, description="accelerate's device map, e.g. 'auto', for a model larger than one device")
    attn_implementation: str = Field("sdpa", description="transformers attention implementation")
    trust_remote_code: bool = Field(False, description="run modelling code that comes with the checkpoint")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its tokenizer and what identifies its weights.

    `identity`: {"name", "source": "hub" | "folder" | "gguf" | "embedded", "revision", "sha256"}; the hash covers the
    weight files in order of their names (None for a hub model, whose revision is a commit id).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]


def load_model(spec: ModelSpec) -> LoadedModel:
    """Loads the model that `spec` names.

    Raises:
        BadInput: a name that is none of the accepted kinds, or a device that is not there.
        CheckpointError: a folder without weights, a truncated file, a hub model that can't be had.
        AssetError: the embedded model can't be fetched.
    """
    dtype = getattr(torch, spec.dtype)
    options: dict[str, Any] = {"attn_implementation": spec.attn_implementation, "trust_remote_code": spec.trust_remote_code}
    if spec.device_map is not None:
        options["device_map"] = spec.device_map
    folder, identity = resolve_model(spec)
    if folder is not None:
        model, found = load_pruned(folder, dtype=dtype, **options)
        tokenizer = cast(PreTrainedTokenizerBase, found)
    else:
        model, tokenizer, revision = _load_from_hub(spec, dtype, options)
        identity["revision"] = revision
    if spec.device_map is None:
        cast(nn.Module, model).to(resolve_device(spec.device))
    return LoadedModel(model.eval(), tokenizer, identity)


def resolve_model(spec: ModelSpec) -> tuple[Path | None, dict[str, Any]]:
    """The local folder that holds the model (None: it comes from the hub) and what identifies it; see `LoadedModel`."""
    name = spec.name
    identity: dict[str, Any] = {"name": name, "revision": spec.revision, "sha256": None}
    if name.startswith(EMBEDDED_PREFIX):
        known = EMBEDDED_MODELS.get(name.removeprefix(EMBEDDED_PREFIX))
        if known is None:
            raise BadInput(f"model {name!r} is not embedded; use {ACCEPTED}.")
        folder = convert_gguf(known())
        return folder, identity | {"source": "embedded", "sha256": weights_sha256(folder)}
    path = Path(name).expanduser()
    if path.is_dir():
        return path, identity | {"source": "folder", "sha256": weights_sha256(path)}
    if name.endswith(".gguf"):
        folder = convert_gguf(path)
        return folder, identity | {"source": "gguf", "sha256": weights_sha256(folder)}
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.is_absolute():
        raise BadInput(f"model {name!r} is not there; use {ACCEPTED}.")
    return None, identity | {"source": "hub"}


def resolve_device(device: str) -> torch.device:
    """'auto' is the first GPU if there is one, else the CPU.

    Raises:
        BadInput: an unknown device or one that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {device!r} is not available ({str(error).splitlines()[0]}); use 'auto', 'cpu' or 'cuda'.") from error
    return chosen


def weights_sha256(folder: Path) -> str:
    """One SHA-256 over the hashes of a folder's weight files; remembered while the files don't change."""
    files = weight_files(folder)
    return _sha256_of_files(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


@functools.lru_cache(maxsize=64)
def _sha256_of_files(files: tuple[tuple[str, int, int], ...]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, _, _ in files:
        digest.update(assets.sha256_of(Path(name)).encode())
    return digest.hexdigest()


def _load_from_hub(
    spec: ModelSpec, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    try:
        model = AutoModelForCausalLM.from_pretrained(spec.name, dtype=dtype, revision=spec.revision, **options)
        tokenizer = AutoTokenizer.from_pretrained(spec.name, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"model {spec.name!r} can't be loaded from the hub ({reason}); use {ACCEPTED}.") from error
    return model, tokenizer, getattr(model.config, "_commit_hash", None) or spec.revision


def convert_gguf(path: Path) -> Path:
    """A transformers folder (float32 safetensors) for a GGUF file, converted once and kept in the cache.

    Raises:
        CheckpointError: no such file, truncated, or not a model that transformers can read from GGUF.
    """
    if not path.is_file():
        raise CheckpointError(f"GGUF file {path} does not exist.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
    folder = assets.cache_root() / "converted" / f"{path.stem}-{assets.sha256_of(path)[:16]}"
    if folder.is_dir():
        return folder
    _check_gguf_size(path)
    log.info("converting %s to safetensors (once)", path.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            target = Path(temporary) / "model"
            _write_converted(path, target)
            assets.publish_folder(target, folder)
    except OSError as error:
        raise AssetError(f"the converted model can't be written to {folder.parent} ({error.strerror or error}).") from error
    return folder


def _check_gguf_size(path: Path) -> None:
    """A cut file would otherwise fail deep inside the reader or, worse, load zeros."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, OSError, RuntimeError) as error:
        raise CheckpointError(f"GGUF file {path} is truncated or damaged; fetch it again.") from error
    if end == 0 or end > os.path.getsize(path):
        raise CheckpointError(f"GGUF file {path} is truncated: it holds {os.path.getsize(path)} of {end} bytes; fetch it again.")


def _write_converted(path: Path, target: Path) -> None:
    try:
        source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"GGUF file {path} can't be read by transformers: {str(error).splitlines()[0]}") from error
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(source)(config)  # a model read from GGUF refuses to be saved; a plain one with its weights does not
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
