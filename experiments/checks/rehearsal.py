"""Prunes a tiny model of the same class and config first: what can't be sliced, saved or reloaded is found before any work."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.errors import UnsupportedModel, is_out_of_memory
from prunebench.models.files import one_line
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.loading import ModelSpec, check_loads
from prunebench.models.masks import Masks
from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_masks, randomise

LAYERS = 3
KV_HEADS = 2
CHANNELS = 48
VOCABULARY = 128
TOKENS = 24
NEW_TOKENS = 4
TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit, in float32."""

KINDS: dict[str, dict[str, bool]] = {
    "heads and channels": {},
    "whole sub-layers": {"heads": False, "channels": False, "sublayers": True},
    "residual dimensions": {"heads": False, "channels": False, "hidden": True},
}


def rehearse(spec: ModelSpec) -> None:
    """Refuses a model of which a pruned copy would not be the same model; nothing happens where its files aren't here yet.

    Raises:
        UnsupportedModel: the anatomy can't read it, or slicing, saving or reloading changes what it computes.
        BadInput: it can't be loaded at all.
    """
    empty = check_loads(spec)
    if empty is not None and not hasattr(empty.config, "pruning"):  # which was rehearsed, sliced and reloaded before
        _rehearse_config(empty.config.to_json_string(), spec)


@functools.lru_cache(maxsize=64)
def _rehearse_config(config_text: str, spec: ModelSpec) -> None:
    """Remembered by config."""
    empty = check_loads(spec)
    assert empty is not None  # its config is at hand
    model = tiny_copy(empty)
    name = f"model {spec.name} ({type(model).__name__})"
    for what, kinds in KINDS.items():
        try:
            _rehearse_masks(model, random_masks(Anatomy.from_model(model), seed=1, **kinds), f"{name}, without some of its {what},")
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever a model class does when its parts are missing
            if is_out_of_memory(error):
                raise
            reason = one_line(error).rpartition("can't be loaded: ")[2]  # not the name of a folder that is gone
            raise UnsupportedModel(
                f"{name} can't be pruned, only evaluated: without some of its {what} it can't be rebuilt ({reason})."
            ) from error


@torch.no_grad()
def _rehearse_masks(model: PreTrainedModel, masks: Masks, what: str) -> None:
    anatomy = Anatomy.from_model(model)
    runnable: Any = model
    tokens = torch.arange(1, TOKENS + 1)[None] % VOCABULARY
    with apply_masks(model, anatomy, masks):
        expected = runnable(input_ids=tokens, use_cache=False).logits
    sliced = slice_model(model, masks)
    if count_params(sliced) != masks.count(anatomy):
        raise UnsupportedModel(f"{what} has {count_params(sliced).total} parameters, where its masks leave {masks.count(anatomy).total}.")
    _compare(sliced, tokens, expected, f"{what} gives other logits once it is sliced")
    with tempfile.TemporaryDirectory() as folder:
        save_pruned(sliced, None, Path(folder) / "pruned", {})
        reloaded, _ = load_pruned(Path(folder) / "pruned", with_tokenizer=False)
    _compare(reloaded, tokens, expected, f"{what} gives other logits once it is saved and loaded again")
    _compare_cached(reloaded, tokens, what)


def _compare(model: Any, tokens: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    found = model(input_ids=tokens, use_cache=False).logits
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise UnsupportedModel(f"{what} (by {difference:.0%} of the largest), so that it can be evaluated, not pruned.")


def _compare_cached(model: Any, tokens: torch.Tensor, what: str) -> None:
    """Token by token with a cache, as text is generated, against the whole sequence at once."""
    whole = model(input_ids=tokens, use_cache=False).logits[:, -NEW_TOKENS:]
    output = model(input_ids=tokens[:, :-NEW_TOKENS], use_cache=True)
    parts = []
    for place in range(NEW_TOKENS, 0, -1):
        token = tokens[:, -place:][:, :1]
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        parts.append(output.logits)
    difference = float((torch.cat(parts, 1) - whole).abs().max() / whole.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise UnsupportedModel(f"{what} gives other logits token by token than at once (by {difference:.0%}); it can't generate text.")


# --- the same class and config, small --------------------------------------------------------------------------------


def tiny_copy(empty: PreTrainedModel) -> PreTrainedModel:
    """A random float32 model of the same class and config with few layers, heads, channels and words.

    Where the class can't be built so small, its layers keep their real sizes.

    Raises:
        UnsupportedModel: it can't be built either way.
    """
    reason: BaseException | None = None
    for is_narrow in (True, False):
        try:
            return _build(type(empty), shrunk(empty.config, is_narrow=is_narrow))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = reason or error
    assert reason is not None
    raise UnsupportedModel(f"{type(empty).__name__} can't be built from its config ({one_line(reason)}).")


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).float()
        randomise(model)
    return model.eval()


def shrunk(config: PreTrainedConfig, *, is_narrow: bool) -> PreTrainedConfig:
    """A config with fewer layers (one of each kind at least) and words; narrow ones have fewer heads and channels, too.

    Head size, and the width of all heads as a share of the residual width, stay as they are.
    """
    settings = config.to_dict()
    layers = _some_layers(settings)
    for name, value in list(settings.items()):
        if isinstance(value, list) and len(value) == settings["num_hidden_layers"] and len(value) > LAYERS:
            settings[name] = [value[i] for i in layers]
    settings["num_hidden_layers"] = len(layers)
    settings["vocab_size"] = min(VOCABULARY, settings["vocab_size"])
    for name, value in settings.items():
        if name.endswith("_token_id"):
            settings[name] = None if value is None else 0
    heads = settings.get("num_attention_heads")
    if is_narrow and isinstance(heads, int):
        groups = settings.get("num_key_value_heads") or heads
        fewer = min(groups, KV_HEADS) * (heads // groups)
        if settings["hidden_size"] * fewer % heads == 0:
            settings["hidden_size"] = settings["hidden_size"] * fewer // heads
            settings["num_attention_heads"] = fewer
            if settings.get("num_key_value_heads") is not None:
                settings["num_key_value_heads"] = min(groups, KV_HEADS)
        if isinstance(settings.get("intermediate_size"), int):
            settings["intermediate_size"] = min(CHANNELS, settings["intermediate_size"])
    small = type(config).from_dict({name: value for name, value in settings.items() if name not in ("dtype", "torch_dtype")})
    small._attn_implementation = config._attn_implementation
    return small


def _some_layers(settings: dict[str, Any]) -> list[int]:
    """Indices of the first layers, and of the first one of each further kind."""
    count = settings["num_hidden_layers"]
    chosen = list(range(min(LAYERS, count)))
    kinds = settings.get("layer_types") or []
    for index, kind in enumerate(kinds):
        if kind not in {kinds[i] for i in chosen}:
            chosen.append(index)
    return chosen
