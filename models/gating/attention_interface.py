"""Another attention function for a model, behind transformers' attention interface, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, PreTrainedModel


@contextmanager
def attention_function(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within it every attention module of `model` calls `function`, without a mask made for it. Nests.

    Args:
        name: under which transformers knows the function, for the whole process.
    """
    AttentionInterface.register(name, function)
    configs: dict[int, Any] = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
