"""Tells one model from another by everything it is made of, so that kept outcomes are never taken for another's.

A model is its bytes: every tensor, the settings of its modules, its code where that comes from neither transformers nor us,
its config and generation config, and the tokenizer as a whole. How a file was written, by which version and where it lay
doesn't count, so a model that was saved and loaded again is the same one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.evaluation.own_code import KNOWN_CODE, has_functions_put_on_it, package_of

log = logging.getLogger(__name__)

BOOKKEEPING = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_from_model_config",
    "_attn_implementation_autoset",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
"""Config entries that say where a model came from; class, code and dtypes are hashed by themselves."""

MODULE_STATE = {"training", "gradient_checkpointing", "name_or_path", "warnings_issued"}
"""Attributes of modules that change no number of an evaluation."""

TOKENIZER_SETTINGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "chat_template",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "legacy",
    "model_max_length",
    "special_tokens_map",
    "split_special_tokens",
)


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """SHA-256 of a model and its tokenizer: under a second a gigabyte.

    A model whose forward pass was changed by hooks or functions put on its modules can't be told by what it holds; it
    gets a fingerprint of its own each time, so nothing that is kept is ever taken for it.
    """
    digest = hashlib.sha256()
    for part in (_tensors(model), _modules(model), _configs(model), _tokenizer(tokenizer)):
        for name, value in part:
            digest.update(f"\0{name}\0".encode())
            digest.update(value)
    return digest.hexdigest()


# --- tensors -----------------------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Every entry of the state dict, and the buffers that no file holds (rotary frequencies, embedding scales)."""
    state: dict[str, Any] = dict(model.state_dict())
    state |= {name: buffer for name, buffer in model.named_buffers() if name not in state}
    seen: dict[tuple[Any, ...], bytes] = {}
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):  # extra state of a module
            yield f"state {name}", _text(value)
            continue
        if value.is_meta:
            held = _offloaded(model, name)
            content = _hash(held) if held is not None else _unknown(f"tensor {name} holds no data")
        else:
            key = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
            if key not in seen or not value.numel():  # tied weights once
                seen[key] = _hash(value)
            content = seen[key]
        yield f"tensor {name} {tuple(value.shape)} {value.dtype}", content


def _hash(tensor: Tensor) -> bytes:
    """SHA-256 of the bytes, without a copy where the tensor is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").digest()


def _offloaded(model: nn.Module, name: str) -> Tensor | None:
    """A tensor that accelerate keeps elsewhere, on the CPU or on disk."""
    path, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(path), "_hf_hook", None)
    for candidate in getattr(hook, "hooks", [hook]):
        weights = getattr(candidate, "weights_map", None)
        if weights is not None:
            return torch.as_tensor(weights[own])
    return None


def _unknown(why: str) -> bytes:
    """Stands for what can't be hashed: never the same twice."""
    log.warning("%s; outcomes of this model are not kept for another run", why)
    return uuid.uuid4().bytes


# --- modules and their code ----------------------------------------------------------------------------------------


def _modules(model: nn.Module) -> Iterator[tuple[str, bytes]]:
    """Class and plain settings of every module, and the source of classes that come with the model."""
    classes: set[type] = set()
    for name, module in model.named_modules():
        kind = type(module)
        classes.update(kind.__mro__)
        held = {key: value for key, value in vars(module).items() if not key.startswith("_") and key not in MODULE_STATE}
        yield f"module {name} {kind.__qualname__}", _text({key: value for key, value in held.items() if _is_plain(value)})
        if has_functions_put_on_it(module):
            yield f"functions of {name}", _unknown(f"{name or 'the model'} ({kind.__qualname__}) has functions put on it")
    yield from _sources(classes)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(inner) for inner in value)
    return isinstance(value, bool | int | float | str | None)


def _sources(classes: set[type]) -> Iterator[tuple[str, bytes]]:
    """Source files that hold these classes, and those beside them that they import."""
    waiting = sorted({kind.__module__ for kind in classes if package_of(kind) not in KNOWN_CODE})
    found: set[str] = set()
    sources: set[tuple[str, bytes]] = set()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in found or module is None:
            continue
        found.add(name)
        file = getattr(module, "__file__", None)
        if file and Path(file).is_file():
            sources.add((name.rpartition(".")[2], Path(file).read_bytes()))
        package = name.rpartition(".")[0]
        names = {getattr(value, "__name__" if inspect.ismodule(value) else "__module__", None) for value in vars(module).values()}
        waiting += [other for other in names if package and isinstance(other, str) and other.rpartition(".")[0] == package]
    for name, source in sorted(sources):
        yield f"source {name}", source


# --- configs -------------------------------------------------------------------------------------------------------


def _configs(model: Any) -> Iterator[tuple[str, bytes]]:
    config = getattr(model, "config", None)
    if config is not None:
        yield "config", _text(_told(config.to_dict()))
        yield "attention", str(getattr(config, "_attn_implementation", None)).encode()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        yield "generation", _text(_told(generation.to_dict()))


def _told(value: Any) -> Any:
    """Without bookkeeping, at any depth."""
    if isinstance(value, dict):
        return {str(key): _told(inner) for key, inner in value.items() if key not in BOOKKEEPING}
    if isinstance(value, list | tuple):
        return [_told(inner) for inner in value]
    return value


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=repr).encode()


# --- tokenizer -----------------------------------------------------------------------------------------------------


def _tokenizer(tokenizer: Any) -> Iterator[tuple[str, bytes]]:
    """What turns text into ids, whole; and the settings around it."""
    settings = {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS}
    yield "tokenizer settings", _text({key: str(value) for key, value in settings.items() if value is not None})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()
        yield "tokenizer", text[text.index('"added_tokens"') :].encode()  # behind padding and truncation, which calls change
    else:
        yield f"tokenizer {type(tokenizer).__qualname__}", _text(sorted(tokenizer.get_vocab().items()))
        yield "added tokens", _text({token: repr(added) for token, added in tokenizer.added_tokens_encoder.items()})
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = [Path(path) for path in tokenizer.save_vocabulary(folder) if path]
                for path in sorted(files):
                    yield f"vocabulary {path.name}", path.read_bytes()
            except (NotImplementedError, OSError, ValueError) as error:
                yield "vocabulary", _unknown(f"the vocabulary of {type(tokenizer).__qualname__} can't be read ({error})")
    yield from _sources(set(type(tokenizer).__mro__))
