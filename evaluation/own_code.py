"""Which code of a model is its own: neither a library's nor ours, or put on a module from outside."""

from __future__ import annotations

from typing import Any

from torch import nn

LIBRARIES = {"transformers", "torch", "accelerate", "peft", "builtins"}
KNOWN_CODE = LIBRARIES | {"prunebench"}
"""Packages whose code is told by their version."""


def package_of(thing: Any) -> str:
    """Top package of a class or function, or of an object's class."""
    return str(getattr(thing, "__module__", None) or type(thing).__module__).partition(".")[0]


def has_functions_put_on_it(module: nn.Module) -> bool:
    """Whether the module computes something else than its class says: by a hook, or a method put on instance or class.

    Libraries' own hooks don't count: they move tensors and read outputs.
    """
    if package_of(type(module).forward) not in {package_of(kind) for kind in type(module).__mro__}:
        return True
    functions: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    functions += [
        value
        for key, value in vars(module).items()
        if callable(value)
        and hasattr(type(module), key)
        and not isinstance(value, nn.Module)
        and not (key == "forward" and hasattr(module, "_hf_hook"))  # by which accelerate moves tensors
    ]
    return any(package_of(function) not in LIBRARIES for function in functions)


def is_stock(model: nn.Module) -> bool:
    """Whether all that the model computes is code of libraries or ours."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    return all(package_of(kind) in KNOWN_CODE for kind in classes) and not any(has_functions_put_on_it(one) for one in model.modules())
