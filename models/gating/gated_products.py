"""This module multiplies activations by gates, with gradients for both: plainly, and in the least time and memory for training."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

Parts = tuple[int, ...] | None
"""Token counts of the parts of a row, where gates have a row for each."""
Times = Callable[[Tensor, Tensor, Parts], Tensor]

UNDECIDED_SHARE = 4
"""On a CPU, gates that learn are picked out where they are fewer than one in so many."""


@dataclass(frozen=True)
class GateFunctions:
    """Says how gates act on what a module reads, on what an embedding or a linear layer gives, and on a product of two activations."""

    of_input: Times
    of_output: Times
    of_product: Times


def times_gate(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """Multiplies activations by gates.

    Args:
        x: (..., tokens, units).
        gate: (units,), or (len(parts), units), of any floating dtype; the result has x's.
        parts: tokens in a row on which each row of the gate acts, the last one also on those that are left.
    """
    gate = gate.to(x.dtype)
    if parts is None or gate.dim() < 2:
        return x * gate
    return x * torch.cat([row.expand(end - start, -1) for row, (start, end) in zip(gate, _bounds(x.shape[-2], parts), strict=True)])


def learning_input(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """Multiplies an x that only the next module reads, and without gradient in its place.

    As `times_gate` else, but a gate of 0 or 1 may get no gradient.
    """
    if x.dtype == torch.float16:  # has no room for what a gate gives times its gradient
        return times_gate(x, gate, parts)
    return cast(Tensor, _Gated.apply(x, gate.to(x.dtype), parts, _undecided(gate, parts), [] if torch.is_grad_enabled() else [x]))


def learning_output(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """Multiplies as `learning_input`, always in place of x, which the backward pass of the layer that made it does not need."""
    if x.dtype == torch.float16:
        return times_gate(x, gate, parts)
    return cast(Tensor, _Gated.apply(x, gate.to(x.dtype), parts, _undecided(gate, parts), [x.detach()]))


def learning_product(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """Multiplies as `learning_output` an x that is a product: of the three only the factors are kept for the backward pass."""
    node: Any = x.grad_fn
    if gate.requires_grad and node is not None and node.name() == "MulBackward0" and x.dtype != torch.float16:
        left, right = node._saved_self, node._saved_other
        if left is not None and right is not None and left.shape == right.shape == x.shape:
            return cast(Tensor, _GatedProduct.apply(left, right, gate.to(x.dtype), parts, [x.detach()]))
    return learning_input(x, gate, parts)


PLAIN = GateFunctions(times_gate, times_gate, times_gate)
LEARNING = GateFunctions(learning_input, learning_output, learning_product)


class _Gated(torch.autograd.Function):
    """Computes x * gate, into the tensor in `place`, if any, and the gradient of the gates `among` alone (None: of all).

    `place` shares x's memory, and comes in a list so that autograd takes what is returned for a new tensor. What other gates than
    those `among` give is not kept for the backward pass.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, gate: Tensor, parts: Parts, among: Tensor | None, place: list[Tensor]) -> Tensor:
        product = _times(x, gate, parts, out=place[0] if place else None)
        kept = None
        if context.needs_input_grad[1]:
            kept = product if among is None else _columns(product, among)
        context.save_for_backward(kept, gate, among)
        context.parts = parts
        return product

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        kept, gate, among = context.saved_tensors
        if kept is None:
            return _times(gradient, gate, context.parts), None, None, None, None
        if among is None:
            products = kept * gradient
            of_gate = _of_gate(products, gate, context.parts)
            return _times(gradient, gate, context.parts, out=products), of_gate, None, None, None
        learnt = _of_gate(_columns(gradient, among) * kept, gate[among], None)
        of_gate = torch.zeros_like(gate).index_copy_(0, among, learnt)
        return _times(gradient, gate, context.parts), of_gate, None, None, None


class _GatedProduct(torch.autograd.Function):
    """Computes left * right * gate, into the tensor in `place`, which holds left * right; else as `_Gated`.

    The activation of every MLP channel would otherwise live twice until the backward pass, and be read and written once more.
    """

    @staticmethod
    def forward(context: Any, left: Tensor, right: Tensor, gate: Tensor, parts: Parts, place: list[Tensor]) -> Tensor:
        context.save_for_backward(left, right, gate)
        context.parts = parts
        return _times(place[0], gate, parts, out=place[0])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        left, right, gate = context.saved_tensors
        of_product = _times(gradient, gate, context.parts)
        of_right = of_product * left
        of_left = of_product.mul_(right)
        return of_left, of_right, _of_gate(of_left * left, gate, context.parts), None, None


def _times(x: Tensor, gate: Tensor, parts: Parts, out: Tensor | None = None) -> Tensor:
    """Multiplies as `times_gate`, without gradient, into `out`, which may be x."""
    if parts is None or gate.dim() < 2:
        return torch.mul(x, gate, out=out)
    out = torch.empty_like(x) if out is None else out
    for row, (start, end) in zip(gate, _bounds(x.shape[-2], parts), strict=True):
        torch.mul(x[..., start:end, :], row, out=out[..., start:end, :])
    return out


def _of_gate(products: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """Computes the gradient of the gates from (..., tokens, units): what they give, times its gradient.

    What a gate multiplies is what it gives, divided by it, so that only the latter is kept; from a gate of 0 it can't be told.
    """
    products = products.flatten(0, -2)
    if parts is not None and gate.dim() == 2:
        sums = torch.stack([products[start:end].sum(0) for start, end in _bounds(len(products), parts)])
    else:
        sums = products.sum(0)
    return torch.where(gate == 0, 0, sums / gate)


def _bounds(tokens: int, parts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Lists the first and last token + 1 of each part; the last part goes to the end."""
    ends = [*itertools.accumulate(parts[:-1]), tokens]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _undecided(gate: Tensor, parts: Parts) -> Tensor | None:
    """Finds the gates that are neither 0 nor 1, the only ones that learn in a hard-concrete draw; None: all count as such.

    That is so where picking them out does not pay: none learns, many do, each part has others, or an accelerator would have to be
    waited for.
    """
    if parts is not None or gate.device.type != "cpu" or not (gate.requires_grad and torch.is_grad_enabled()):
        return None
    among = ((gate > 0) & (gate < 1)).nonzero().squeeze(1)
    return among if len(among) * UNDECIDED_SHARE < len(gate) else None


def _columns(x: Tensor, among: Tensor) -> Tensor:
    """Returns (tokens, columns), picked from a matrix, which takes less than half of the time that more dimensions do on a CPU."""
    return x.flatten(0, -2).index_select(1, among)
