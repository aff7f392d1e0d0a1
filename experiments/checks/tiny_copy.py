"""A tiny random model of the same class and config as a real one: what happens to it happens to the real one."""

from __future__ import annotations

from math import lcm
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from prunebench.models.errors import UnsupportedModel, is_out_of_memory
from prunebench.models.files import one_line

LAYERS = 4
KV_HEADS = 2
HEADS_WITHOUT_GROUPS = 3
QUERY_HEADS_PER_GROUP = 2
CHANNELS = 48
VOCABULARY = 128
WINDOW = 8
"""Tokens that a sliding window keeps: fewer than a rehearsed text has."""
MOST_PARAMETERS = 300_000_000

SHRUNK = (("heads", "channels"), ("channels",), ())
"""What gets fewer besides layers and words, the smallest copy first; later ones are for classes that can't be built so small."""


def tiny_copy(empty: PreTrainedModel, tokens: torch.Tensor) -> PreTrainedModel:
    """A random float32 model of the same class and config with few layers, heads, channels and words.

    Where the class can't be built so small, or can't read `tokens` then, heads and channels keep their real sizes.

    Raises:
        UnsupportedModel: none can be built; with the first reason.
    """
    reason: str | None = None
    for fewer in SHRUNK:
        try:
            config = shrunk(empty.config, fewer=fewer)
            with torch.device("meta"):
                size = sum(p.numel() for p in type(empty)(_copied(config)).parameters())
            if size > MOST_PARAMETERS:
                continue
            model = _build(type(empty), config)
            with torch.no_grad():
                runnable: Any = model
                finite = bool(torch.isfinite(runnable(input_ids=tokens, use_cache=False).logits).all())
        except Exception as error:  # whatever a model class makes of such a config
            if is_out_of_memory(error):
                raise
            reason = reason or one_line(error)
            continue
        if finite:
            return model
        reason = reason or "its logits are not numbers"
    raise UnsupportedModel(f"no small copy of {type(empty).__name__} can be built to try it on ({reason})")


def _copied(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config of its own, since model classes change the one that they are given."""
    copy = type(config).from_dict(config.to_dict())
    copy._attn_implementation = config._attn_implementation
    return copy


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).float()
        randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Draws every weight anew from torch's generator: vectors around what they are, matrices so that no width saturates a softmax.

    A saturated softmax would turn rounding into large differences of logits.
    """
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)


def shrunk(config: PreTrainedConfig, *, fewer: tuple[str, ...] = SHRUNK[0]) -> PreTrainedConfig:
    """A config with fewer layers (one of each kind at least), words and tokens in a window.

    With "heads" in `fewer` it has fewer heads and a residual width less in proportion: head size stays, and so does
    whether all heads together are as wide as the residual stream, or wider or narrower. With "channels", fewer of these.
    """
    names = {plain: config.attribute_map.get(plain, plain) for plain in (*_COUNTS, "num_hidden_layers", "vocab_size", "hidden_size")}
    settings = config.to_dict()
    count = settings[names["num_hidden_layers"]]
    layers = some_layers(settings, count)
    for name in _layer_lists(settings, count):
        settings[name] = [settings[name][i] for i in layers]
    settings[names["num_hidden_layers"]] = len(layers)
    settings[names["vocab_size"]] = min(VOCABULARY, settings[names["vocab_size"]])
    for name in ("sliding_window", "attention_chunk_size"):
        if isinstance(settings.get(name), int):
            settings[name] = min(WINDOW, settings[name])
    for name, value in settings.items():
        if name.endswith(("_token_id", "_token_ids")):
            settings[name] = None if value is None else 0
    if "heads" in fewer:
        _shrink_heads(settings, names)
    channels = names["intermediate_size"]
    if "channels" in fewer and isinstance(settings.get(channels), int):
        settings[channels] = min(CHANNELS, settings[channels])
    small = type(config).from_dict({name: value for name, value in settings.items() if name not in ("dtype", "torch_dtype")})
    if config._attn_implementation in ("eager", "sdpa"):  # others may need a GPU, and change no shape
        small._attn_implementation = config._attn_implementation
    return small


_COUNTS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def _shrink_heads(settings: dict[str, Any], names: dict[str, str]) -> None:
    heads, hidden = settings.get(names["num_attention_heads"]), settings.get(names["hidden_size"])
    if not isinstance(heads, int) or not isinstance(hidden, int) or not heads:
        return
    groups = settings.get(names["num_key_value_heads"]) or heads
    head_dim = settings.get("head_dim") or hidden // heads
    per_group = heads // groups
    fewer_groups = min(groups, KV_HEADS if per_group > 1 else HEADS_WITHOUT_GROUPS)
    fewer = fewer_groups * min(per_group, QUERY_HEADS_PER_GROUP)
    settings[names["num_attention_heads"]] = fewer
    if settings.get(names["num_key_value_heads"]) is not None:
        settings[names["num_key_value_heads"]] = fewer_groups
    settings[names["hidden_size"]] = _width(hidden * fewer / heads, fewer, fewer * head_dim, hidden - heads * head_dim)


def _width(wanted: float, heads: int, of_heads: int, difference: int) -> int:
    """The multiple of 8 and of the heads nearest to `wanted` that is narrower, as wide, or wider than all heads, as `difference` says."""
    if difference == 0:
        return of_heads
    step = lcm(8, heads)
    width = max(step, round(wanted / step) * step)
    if difference > 0:
        return max(width, of_heads // step * step + step)
    return min(width, max(heads, (of_heads - 1) // step * step))


def some_layers(settings: dict[str, Any], count: int) -> list[int]:
    """Indices of the first layers, and of the first one of each further kind by any list that has an entry for each layer."""
    lists = [settings[name] for name in _layer_lists(settings, count)]
    kinds = [tuple(map(repr, kind)) for kind in zip(*lists, strict=True)] if lists else [()] * count
    chosen = list(range(min(LAYERS, count)))
    seen = {kinds[i] for i in chosen}
    for index, kind in enumerate(kinds):
        if kind not in seen:
            chosen.append(index)
            seen.add(kind)
    return chosen


def _layer_lists(settings: dict[str, Any], count: int) -> list[str]:
    """Names of the settings that are lists with an entry for each layer."""
    return [
        name
        for name, value in settings.items()
        if isinstance(value, list | tuple) and len(value) == count and not name.endswith(("_token_id", "_token_ids", "architectures"))
    ]
