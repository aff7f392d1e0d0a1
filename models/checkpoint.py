"""Saves and loads model folders: safetensors, `config.json`, the tokenizer, and the modelling file of pruned models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunebench.models import modeling_pruned
from prunebench.models.errors import CheckpointError, PrunebenchError, is_out_of_memory
from prunebench.models.files import PROVENANCE_FILE, ModelFiles, model_files, one_line
from prunebench.models.slice import MODELING_FILE


@dataclass(frozen=True)
class LoadOptions:
    """How the weights of a folder are loaded.

    Attributes:
        dtype: None keeps the one that they are stored in.
        attn_implementation: None is the fastest that the model supports.
        device_map: accelerate's; None leaves the model on the CPU.
        trust_remote_code: runs modelling code of the folder.
    """

    dtype: torch.dtype | None = None
    attn_implementation: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


def save_pruned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, provenance: dict[str, Any]) -> None:
    """Writes a model (pruned or dense) to `folder`, whole or not at all; an earlier folder of that name is replaced.

    A pruned folder loads with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` where prunebench
    is not installed, and with `load_pruned` here.

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
    folder: Path | str,
    *,
    with_tokenizer: bool = True,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Loads a folder that `save_pruned` wrote, or any other local model folder, in eval mode.

    Args:
        with_tokenizer: False returns None for the tokenizer, which the folder then need not have.
        dtype, attn_implementation, device_map, trust_remote_code: see `LoadOptions`.

    Raises:
        CheckpointError: no such folder, no config, no weights, weights that are truncated, quantised or don't fit the
            config, no tokenizer or one that doesn't fit the model.
    """
    options = LoadOptions(dtype, attn_implementation, device_map, trust_remote_code)
    files = model_files(Path(folder), trust_remote_code=trust_remote_code)
    open_model(files, options, empty=True)
    tokenizer = open_tokenizer(files, options) if with_tokenizer else None
    model = open_model(files, options)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model, files.folder)
    return model, tokenizer


def open_model(files: ModelFiles, options: LoadOptions, *, empty: bool = False) -> PreTrainedModel:
    """The model of a folder in eval mode, after checking that its config and its tensors fit each other exactly.

    Args:
        empty: on the meta device: the same checks by the same loader, without reading the weights.

    Raises:
        CheckpointError: a missing, unexpected or mismatched tensor (the first one is named), a config that contradicts
            the tensors, or whatever else transformers makes of the folder, in its own words.
    """
    folder = files.folder
    keywords: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "dtype": options.dtype or _own_dtype(files)}
    if options.attn_implementation is not None:
        keywords["attn_implementation"] = options.attn_implementation
    if empty:
        keywords |= {"device_map": "meta", "ignore_mismatched_sizes": True}  # which reports them instead of raising
    elif options.device_map is not None:
        keywords["device_map"] = options.device_map
    with loading(f"model folder {folder} can't be loaded"):
        config, loader = _config_and_loader(files, options)
        model, report = loader.from_pretrained(folder, config=config, use_safetensors=True, output_loading_info=True, **keywords)
    _check_report(files, report)
    _check_class(files, model, options)
    if empty:
        _check_tied(files, model)
    model.eval()
    return model


def open_config(files: ModelFiles, options: LoadOptions) -> PreTrainedConfig:
    """The config of a folder as its model class reads it.

    Raises:
        CheckpointError: transformers refuses it.
    """
    with loading(f"model folder {files.folder} can't be loaded"):
        return _config_and_loader(files, options)[0]


def open_tokenizer(files: ModelFiles, options: LoadOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: there is none, or transformers can't read it.
    """
    trust = options.trust_remote_code
    with loading(f"model folder {files.folder} has no tokenizer that can be loaded"):
        config, _ = _config_and_loader(files, options)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.folder, config=config, trust_remote_code=trust)
    return tokenizer


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns any exception of a loader into one sentence with the loader's own reason; running out of memory stays what it is.

    Args:
        what: how the sentence begins: what can't be done with which model.

    Raises:
        CheckpointError: in the place of the exception.
    """
    try:
        yield
    except PrunebenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{what}: {one_line(error)}") from error


def is_pruned_config(settings: dict[str, Any]) -> bool:
    """Whether a `config.json` describes a model that prunebench sliced."""
    return "pruning" in settings and str((settings.get("architectures") or [""])[0]).startswith("Pruned")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path | str) -> None:
    """Refuses a tokenizer with ids that the embedding has no row for.

    Special tokens that were added later and that no text turns into (an image placeholder, say) may lie beyond; one that
    turns up in a text all the same is refused there.

    Raises:
        CheckpointError: names the first such token.
    """
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    exempt = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and (i not in exempt or i in used))
    if beyond:
        index, token = beyond[0]
        raise CheckpointError(
            f"the tokenizer in {folder} gives ids up to {beyond[-1][0]} ({token!r} is {index}), but the model's embedding has {rows} rows; "
            "give the tokenizer that belongs to the model."
        )


# --- does the config fit the tensors? --------------------------------------------------------------------------------


def _config_and_loader(files: ModelFiles, options: LoadOptions) -> tuple[PreTrainedConfig, Any]:
    if is_pruned_config(files.config):
        model_class = getattr(modeling_pruned, files.config["architectures"][0])
        return model_class.config_class.from_pretrained(files.folder), model_class
    if "auto_map" in files.config and not options.trust_remote_code and files.config["model_type"] not in CONFIG_MAPPING:
        raise CheckpointError(
            f"model folder {files.folder} is of type {files.config['model_type']!r}, whose code comes with it; read that code, then "
            "allow it with --trust-remote-code."
        )
    config = AutoConfig.from_pretrained(files.folder, trust_remote_code=options.trust_remote_code)
    return config, AutoModelForCausalLM


def _own_dtype(files: ModelFiles) -> torch.dtype:
    """The dtype that the weights are stored in, by the tensors themselves.

    Raises:
        CheckpointError: the config names another one, or names none where the tensors have several.
    """
    stored = files.float_dtypes
    named = files.config.get("dtype", files.config.get("torch_dtype"))
    dtype = getattr(torch, named, None) if isinstance(named, str) else None
    if not stored:
        raise CheckpointError(f"the weights in {files.folder} hold no floating-point tensor.")
    names = " and ".join(str(one).removeprefix("torch.") for one in stored)
    if dtype in stored:
        return dtype
    if isinstance(named, str) or len(stored) > 1:
        said = f"says {named}" if isinstance(named, str) else "names no dtype"
        raise CheckpointError(f"{files.folder / 'config.json'} {said}, but its tensors are {names}; say with --dtype which to compute in.")
    return next(iter(stored))


def _check_report(files: ModelFiles, report: dict[str, Any]) -> None:
    """Raises CheckpointError for the first tensor that the model and the folder don't agree on."""
    folder = files.folder
    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise CheckpointError(
            f"the weights in {folder} lack {name}, which its config.json asks for; fetch the folder again, or mend the config."
        )
    if report["unexpected_keys"]:
        name = sorted(report["unexpected_keys"])[0]
        raise CheckpointError(
            f"the weights in {folder} hold {name}, which the model of its config.json has no place for, so that it would be dropped; "
            "give the config (or, with --trust-remote-code, the code) that the weights were saved with, or remove the tensor."
        )
    if report["mismatched_keys"]:
        name, stored, wanted = sorted(report["mismatched_keys"], key=str)[0]
        raise CheckpointError(
            f"the weights in {folder} hold {name} in the shape {tuple(stored)}, but its config.json asks for {tuple(wanted)}; "
            "give the config that the weights were saved with."
        )
    if report.get("error_msgs"):
        raise CheckpointError(f"model folder {folder} can't be loaded: {' '.join(str(report['error_msgs'][0]).split())}")


def _check_class(files: ModelFiles, model: PreTrainedModel, options: LoadOptions) -> None:
    """Raises CheckpointError where the config names two kinds of model that transformers has."""
    import transformers

    named = str((files.config.get("architectures") or [""])[0])
    has_own_code = options.trust_remote_code and "auto_map" in files.config
    if named.endswith("ForCausalLM") and named != type(model).__name__ and hasattr(transformers, named) and not has_own_code:
        raise CheckpointError(
            f"{files.folder / 'config.json'} names the architecture {named} and the model_type {files.config['model_type']!r}, which is "
            f"{type(model).__name__}; make them agree."
        )


def _check_tied(files: ModelFiles, model: PreTrainedModel) -> None:
    """Raises CheckpointError where the config ties two tensors that the folder holds with different values."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in tied.items():
        if target in files.tensors and source in files.tensors and not _equal(files, target, source):
            raise CheckpointError(
                f"{files.folder / 'config.json'} ties {target} to {source}, but the weights hold both with different values; "
                "set tie_word_embeddings to false, or remove the one that is not the model's."
            )


def _equal(files: ModelFiles, one: str, other: str) -> bool:
    held = []
    for name in (one, other):
        with safe_open(files.tensors[name].file, framework="pt") as opened:
            held.append(opened.get_tensor(name))
    return held[0].shape == held[1].shape and torch.equal(held[0], held[1])


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, tied ones counted once: what its safetensors hold, without headers."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
