"""Loads what is to be pruned: a hub id, a folder, a GGUF file or an embedded model."""

from __future__ import annotations

import functools
import json
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunebench.models import assets
from prunebench.models.checkpoint import LoadOptions, check_vocabulary, loading, open_config, open_model, open_tokenizer
from prunebench.models.errors import AssetError, BadInput, CheckpointError
from prunebench.models.files import PROVENANCE_FILE, READ_SUFFIXES, ModelFiles, cache_root, model_files, one_line, sha256_of

log = logging.getLogger(__name__)

EMBEDDED_PREFIX = "embedded:"
EMBEDDED_MODELS = {"smollm2-135m-instruct": assets.embedded_model_gguf}
ACCEPTED = "a hub id (ORG/NAME), a model folder, a .gguf file, or " + ", ".join(EMBEDDED_PREFIX + n for n in EMBEDDED_MODELS)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")

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
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
}


class ModelSpec(BaseModel):
    """Which model to load, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="hub id, folder, .gguf file or embedded:NAME")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="None: the one that the weights are stored in")
    device: str = Field("auto", description="'auto' (the GPU if there is one, else the CPU), 'cpu', 'cuda', 'cuda:1', ...")
    device_map: str | None = Field(None, description="accelerate's device map, e.g. 'auto', for a model larger than one device")
    attn_implementation: str | None = Field(None, description="transformers' name of one; None: the fastest that the model supports")
    trust_remote_code: bool = Field(False, description="run modelling code that comes with the checkpoint")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")

    @property
    def options(self) -> LoadOptions:
        """How its weights are loaded."""
        dtype = getattr(torch, self.dtype) if self.dtype is not None else None
        return LoadOptions(dtype, self.attn_implementation, self.device_map, self.trust_remote_code)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its tokenizer and what identifies it.

    `identity`: {"name", "source": "hub" | "folder" | "gguf" | "embedded", "revision", "sha256", "dtype",
    "attn_implementation"}; the hash covers every file that was read (see `ModelFiles.sha256`).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]


def load_model(spec: ModelSpec) -> LoadedModel:
    """Loads the model that `spec` names, after every check that needs no weights.

    Raises:
        BadInput: a name that is none of the accepted kinds, or a device that is not there.
        CheckpointError: files that don't fit each other, that are damaged, quantised or missing; a hub model that can't
            be had.
        AssetError: the embedded model can't be fetched.
    """
    if spec.device_map is None:
        resolve_device(spec.device)
    files, identity = resolve_model(spec)
    open_model(files, spec.options, empty=True)
    tokenizer = open_tokenizer(files, spec.options)
    identity["sha256"] = files.sha256
    model = open_model(files, spec.options)
    check_vocabulary(tokenizer, model, spec.name)
    attention = str(model.config._attn_implementation)
    if spec.attn_implementation is None and attention == "eager":
        log.info("%s supports no fused attention kernel: its own, slower one is used (eager)", spec.name)
    if spec.device_map is None:
        cast(nn.Module, model).to(resolve_device(spec.device))
    identity |= {"dtype": str(model.dtype).removeprefix("torch."), "attn_implementation": attention}
    return LoadedModel(model, tokenizer, identity)


def check_loads(spec: ModelSpec) -> PreTrainedModel | None:
    """The model of `spec` on the meta device, once every check of `load_model` that needs no weights has passed.

    Nothing is fetched or converted: the embedded model comes from its known shape; None where the files aren't here yet.

    Raises:
        BadInput: as `load_model`.
    """
    files = local_files(spec)
    if files is not None:
        return _checked_empty(files.sha256, spec, files.folder)
    return _embedded_empty(spec) if spec.name.startswith(EMBEDDED_PREFIX) else None


@functools.lru_cache(maxsize=8)
def _embedded_empty(spec: ModelSpec) -> PreTrainedModel:
    with loading(f"model {spec.name!r} can't be loaded"), torch.device("meta"):
        config = AutoConfig.for_model(**EMBEDDED_SHAPES[spec.name.removeprefix(EMBEDDED_PREFIX)])
        options: dict[str, Any] = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, **options))


@functools.lru_cache(maxsize=32)
def _checked_empty(sha256: str, spec: ModelSpec, folder: Path) -> PreTrainedModel:
    """Remembered by what the files hold."""
    files = model_files(folder, trust_remote_code=spec.trust_remote_code)
    model = open_model(files, spec.options, empty=True)
    check_vocabulary(open_tokenizer(files, spec.options), model, spec.name)
    return model


def load_config(spec: ModelSpec) -> PreTrainedConfig | None:
    """The config of the model that `spec` names, without fetching or converting anything; None where it can't be had so.

    Raises:
        BadInput: the folder can't be read.
    """
    files = local_files(spec)
    if files is not None:
        return open_config(files, spec.options)
    if spec.name.startswith(EMBEDDED_PREFIX):
        return AutoConfig.for_model(**EMBEDDED_SHAPES[spec.name.removeprefix(EMBEDDED_PREFIX)])
    return None


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model whose files are here; None for others, and for the embedded model, which is not fetched for it.

    Raises:
        BadInput: it can't be read.
    """
    files = local_files(spec)
    return None if files is None else _tokenizer_of(files.sha256, spec, files.folder)


@functools.lru_cache(maxsize=16)
def _tokenizer_of(sha256: str, spec: ModelSpec, folder: Path) -> PreTrainedTokenizerBase:
    """Remembered by what the files hold."""
    return open_tokenizer(model_files(folder, trust_remote_code=spec.trust_remote_code), spec.options)


def local_files(spec: ModelSpec) -> ModelFiles | None:
    """The files of a model that is here already: a folder, a hub model in the hub's cache, a GGUF file that was converted.

    None for all others, and for the embedded model, whose shape is known without its files.
    """
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return model_files(path, trust_remote_code=spec.trust_remote_code)
    if path.is_file() and path.suffix == ".gguf":
        check_gguf(path)
        folder = _converted_folder(path)
        return model_files(folder) if folder.is_dir() and _is_as_converted(folder) else None
    if is_hub_id(spec.name) and not path.exists():
        snapshot = _snapshot(spec, here_only=True)
        if snapshot is not None and any(snapshot.glob("model*.safetensors*")):
            return model_files(snapshot, trust_remote_code=spec.trust_remote_code)
    return None


def resolve_model(spec: ModelSpec) -> tuple[ModelFiles, dict[str, Any]]:
    """The files that hold the model, fetched and converted where need be, and what identifies it; see `LoadedModel`.

    Raises:
        BadInput: as `load_model`.
    """
    name = spec.name
    identity: dict[str, Any] = {"name": name, "revision": spec.revision, "sha256": None}
    trust = spec.trust_remote_code
    if name.startswith(EMBEDDED_PREFIX):
        known = EMBEDDED_MODELS.get(name.removeprefix(EMBEDDED_PREFIX))
        if known is None:
            raise BadInput(f"model {name!r} is not embedded; use {ACCEPTED}.")
        return model_files(convert_gguf(known())), identity | {"source": "embedded"}
    path = Path(name).expanduser()
    if path.is_dir():
        return model_files(path, trust_remote_code=trust), identity | {"source": "folder"}
    if name.endswith(".gguf"):
        return model_files(convert_gguf(path)), identity | {"source": "gguf"}
    if not is_hub_id(name):
        raise BadInput(f"model {name!r} is not there; use {ACCEPTED}.")
    folder = _snapshot(spec, here_only=False)
    assert folder is not None  # or it raised
    return model_files(folder, trust_remote_code=trust), identity | {"source": "hub", "revision": folder.name}


# --- the hub ---------------------------------------------------------------------------------------------------------


def is_hub_id(name: str) -> bool:
    """Says whether a name reads as ORG/NAME on the hub; a folder of that name goes first."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).is_absolute()


def _snapshot(spec: ModelSpec, *, here_only: bool) -> Path | None:
    """The folder of a hub model in the hub's own cache; its name is the commit.

    Raises:
        CheckpointError: it can't be had (with `here_only`, None is returned instead).
    """
    from huggingface_hub import snapshot_download

    patterns = ["model*.safetensors", "*.safetensors.index.json", "adapter_model.*", "additional_chat_templates/*.jinja"]
    patterns += [f"*{suffix}" for suffix in READ_SUFFIXES] + (["*.py"] if spec.trust_remote_code else [])
    try:
        return Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=patterns, local_files_only=here_only))
    except Exception as error:  # the hub's client raises many kinds
        if here_only:
            return None
        raise CheckpointError(f"model {spec.name!r} can't be loaded from the hub ({one_line(error)}); use {ACCEPTED}.") from error


@functools.lru_cache(maxsize=64)
def hub_commit(name: str, revision: str | None) -> str | None:
    """The commit that a hub revision names now: by the hub, else by its cache here; None where neither knows it.

    Raises:
        CheckpointError: the hub says that there is no such model or revision, or that it may not be read.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not constants.is_offline_mode():
        try:
            return HfApi().model_info(name, revision=revision, timeout=10).sha
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise CheckpointError(f"model {name!r} can't be had from the hub ({one_line(error)}); use {ACCEPTED}.") from None
        except Exception as error:  # no network: its cache here may still know
            log.debug("the hub does not tell the commit of %s: %s", name, error)
    folder = _snapshot(ModelSpec(name=name, revision=revision), here_only=True)
    return folder.name if folder is not None and COMMIT.fullmatch(folder.name) else None


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


# --- GGUF ------------------------------------------------------------------------------------------------------------


def convert_gguf(path: Path) -> Path:
    """A transformers folder (float32 safetensors) for a GGUF file, converted once and kept in the cache.

    A kept folder whose files have changed since is made anew.

    Raises:
        CheckpointError: no such file, truncated, or not a model that transformers can read from GGUF.
    """
    check_gguf(path)
    folder = _converted_folder(path)
    if folder.is_dir():
        if _is_as_converted(folder):
            return folder
        log.warning("the converted model %s was changed since; it is converted again", folder.name)
    _check_gguf_size(path)
    log.info("converting %s to safetensors (once)", path.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            target = Path(temporary) / "model"
            alone = Path(temporary) / "source"  # whatever else lies beside the file is none of the loader's business
            alone.mkdir()
            (alone / "model.gguf").symlink_to(path.resolve())
            _write_converted(alone / "model.gguf", target, path)
            (target / PROVENANCE_FILE).write_text(json.dumps({"sha256": model_files(target).sha256}) + "\n")
            if folder.is_dir():
                folder.rename(Path(temporary) / "changed")
            assets.publish_folder(target, folder)
    except OSError as error:
        raise AssetError(f"the converted model can't be written to {folder.parent} ({error.strerror or error}).") from error
    return folder


def _converted_folder(path: Path) -> Path:
    return cache_root() / "converted" / f"{path.stem}-{sha256_of(path)[:16]}"


def check_gguf(path: Path) -> None:
    """Refuses what is no GGUF file by its first letters.

    Raises:
        CheckpointError: no such file, or another kind of file.
    """
    if not path.is_file():
        raise CheckpointError(f"GGUF file {path} does not exist; use {ACCEPTED}.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is neither a model folder nor a GGUF file: it does not begin with the letters GGUF.")


def _is_as_converted(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / PROVENANCE_FILE).read_text())["sha256"] == model_files(folder).sha256)
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return False


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


def _write_converted(path: Path, target: Path, name: Path) -> None:
    with loading(f"GGUF file {name} can't be read by transformers"):
        source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = source.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = type(source)(config)  # a model read from GGUF refuses to be saved; a plain one with its weights does not
        model.load_state_dict(source.state_dict())
        model.tie_weights()
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
