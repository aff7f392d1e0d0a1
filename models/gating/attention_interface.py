"""This module gives a model another attention function, behind transformers' attention interface, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, PreTrainedModel


@contextmanager
def attention_function(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Lets every attention module of `model` call `function`, without a mask made for it, for as long as a block lasts. Nests.

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
