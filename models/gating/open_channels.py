"""This module computes MLP products over open channels alone: one whose gate is 0 adds and learns nothing, so training leaves it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prunebench.models.anatomy import MLP

Read = Callable[[], Tensor | None]
Side = Literal[0, 1]  # of a weight: its rows, which make the output, or its columns, which read the input

SHARES = 16
"""A width shrinks by this fraction of it at a time, so that few sizes occur: a CPU keeps its kernels for each that it met."""


class OpenChannels:
    """Tells which channels of every layer take part in a forward pass.

    Args:
        read: the gates of all layers, (channels,) or with a row a part, None for a layer without; read anew at each question, and looked
            through where they are other tensors or were changed in place.
    """

    def __init__(self, read: Callable[[], Sequence[Tensor | None] | None]) -> None:
        self._read = read
        self._seen: list[tuple[Tensor | None, int]] = []
        self._open: list[Tensor | None] = []

    def of(self, layer: int) -> Tensor | None:
        """Returns (channels that take part,) in order, on the device of the gates; None: all of them."""
        gates = self._read()
        if gates is None or gates[layer] is None:
            return None
        if len(self._seen) != len(gates) or self._seen[layer][0] is not gates[layer] or self._seen[layer][1] != _version(gates[layer]):
            self._seen, self._open = [(gate, _version(gate)) for gate in gates], _open(gates)
        return self._open[layer]


def _version(gate: Tensor | None) -> int:
    return 0 if gate is None else gate._version


@torch.no_grad()
def _open(gates: Sequence[Tensor | None]) -> list[Tensor | None]:
    widths = [0 if gate is None else gate.shape[-1] for gate in gates]
    closed = torch.cat([((gate == 0).all(0) if gate.dim() == 2 else gate == 0).cpu() for gate in gates if gate is not None])
    found: list[Tensor | None] = []
    for gate, here in zip(gates, closed.split(widths), strict=True):
        step = _step(len(here))
        gone = here.nonzero().squeeze(1)
        gone = gone[: min(len(gone), len(here) - step) // step * step] if step else gone
        if gate is None or not len(gone):
            found.append(None)
            continue
        stays = torch.ones(len(here), dtype=torch.bool)
        stays[gone] = False
        found.append(stays.nonzero().squeeze(1).to(gate.device))
    return found


def _step(width: int) -> int:
    """Returns a share of a width, rounded up to a multiple of 8, which matrix kernels like, where it is not smaller."""
    share = -(-width // SHARES)
    return share if share < 8 else -(-share // 8) * 8


def leave_out(model: nn.Module, mlp: MLP, read: Read) -> list[OwnForward] | None:
    """Makes the projections of `mlp` compute the channels of `read` alone, in that order, adapters of peft on them included; all for None.

    Returns:
        None, and nothing is changed, where a projection is not a linear layer with its own forward method or an adapter on one.
    """
    rows: dict[str, list[int]] = {}
    for part in (mlp.gate, mlp.up):
        rows.setdefault(part.module, []).append(part.start)
    plans: list[tuple[str, Side, list[int]]] = [(module, 0, starts) for module, starts in rows.items()]
    plans.append((mlp.down, 1, [0]))
    linears = [(_linears(model.get_submodule(module), side), side, starts) for module, side, starts in plans]
    if any(found is None for found, _, _ in linears):
        return None
    return [OwnForward(module, _forward(module, side, starts, read)) for found, side, starts in linears for module in found or ()]


def _linears(module: nn.Module, side: Side) -> list[nn.Linear] | None:
    """Lists the linear layers of a projection that have its channels on this side; None where one is something else."""
    found = [module]
    if hasattr(module, "base_layer"):
        adapters = cast(nn.ModuleDict, module.lora_B if side == 0 else module.lora_A)
        found = [cast(nn.Module, module.base_layer), *adapters.values()]
    linears = [part for part in found if type(part) is nn.Linear and "forward" not in vars(part)]
    return linears if len(linears) == len(found) else None


@dataclass(frozen=True)
class OwnForward:
    """Gives a module another forward method until `remove()`."""

    module: nn.Module
    forward: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        self.module.forward = self.forward

    def remove(self) -> None:
        vars(self.module).pop("forward", None)


def _forward(module: nn.Linear, side: Side, starts: list[int], read: Read) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        channels = read()
        weight: Tensor = module.weight
        bias: Tensor | None = module.bias
        if channels is None:
            return linear(x, weight, bias)
        channels = torch.cat([channels + start for start in starts]).to(weight.device)
        if bias is not None and side == 0:
            bias = bias.index_select(0, channels)
        if weight.requires_grad or not torch.is_grad_enabled() or (bias is not None and bias.requires_grad):
            return linear(x, weight.index_select(side, channels), bias)
        return cast(Tensor, _FrozenLinear.apply(x, weight, bias, side, channels))

    return forward


class _FrozenLinear(torch.autograd.Function):
    """Applies chosen rows or columns of a weight without gradient, chosen again in the backward pass instead of kept."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, side: Side, channels: Tensor) -> Tensor:
        context.save_for_backward(weight, channels)
        context.side = side
        return linear(x, weight.index_select(side, channels), bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, channels = context.saved_tensors
        chosen = weight.index_select(context.side, channels).to(gradient.dtype)
        return gradient @ chosen, None, None, None, None
