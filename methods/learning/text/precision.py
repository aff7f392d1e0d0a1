"""This module says in which precision the matrix products of training are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, cast

import torch
from torch import nn

ComputeDtype = Literal["model", "bfloat16"]

DESCRIPTION = "of training's matrix products; 'bfloat16' leaves all weights as they are, and halves the time where there is hardware for it"


def computing_in(dtype: ComputeDtype, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context for forward passes with products in `dtype`; 'model' changes nothing.

    Weights, residual stream, norms, gates and losses keep their dtype.
    """
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


@contextmanager
def frozen_weights_in(dtype: ComputeDtype, model: nn.Module) -> Iterator[None]:
    """Holds frozen weights of linear layers as `computing_in` would cast them in every single pass, for as long as a block lasts.

    No value of such a pass changes; without it, the casts of a whole pass live until its backward pass. After the block all weights are
    what they were, the same objects; passes outside `computing_in` fail within it.
    """
    held: list[tuple[nn.Linear, nn.Parameter]] = []
    if dtype == "bfloat16":
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        held = [(module, cast(nn.Parameter, module.weight)) for module in linears if _is_frozen(module.weight)]
    try:
        for module, weight in held:  # a head that shares the embedding's weight gets its own, as the embedding is no matrix product
            module.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for module, weight in held:
            module.weight = weight


def _is_frozen(weight: torch.Tensor) -> bool:
    return not weight.requires_grad and weight.dtype == torch.float32 and not weight.is_meta
