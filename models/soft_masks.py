"""Masks in the forward pass: hard or soft gates applied by hooks, removable without trace.

Placement follows Compresso (arXiv 2310.05015, official code; spec sections 3, 4, 12, 13): head gates on the input of
the output projection, channel gates on the input of the down projection, one residual gate on the embedding and on
every sub-layer's output. A gated residual dimension is exactly zero everywhere, and every norm keeps dividing by the
dense width, which `models.slice` reproduces exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from models.anatomy import MLP, Anatomy, Attention
from models.masks import Masks

MLPPlacement = Literal["product", "branches"]
Parts = tuple[int, ...] | None


@dataclass
class Gates:
    """Real-valued gates of the shapes of `Masks`; None means one. They may require gradients and may be reassigned
    (a new draw each step) while applied: the hooks read the attributes anew in every forward pass.

    parts: token counts of the parts of a row (batch of one). With them, the gates of units have one row a part, (parts, units),
    which acts on the tokens of its part; the last one also on any tokens after it.
    """

    kv_groups: Sequence[Tensor] | None = None
    q_heads: Sequence[Tensor] | None = None
    ffn: Sequence[Tensor] | None = None
    hidden: Tensor | None = None
    attn: Tensor | None = None
    mlp: Tensor | None = None
    parts: Parts = None

    @classmethod
    def from_masks(cls, masks: Masks, *, dtype: torch.dtype, device: torch.device | str) -> Gates:
        """Gates that are exactly 0 and 1."""

        def convert(mask: Tensor) -> Tensor:
            return mask.to(device=device, dtype=dtype)

        return cls(
            [convert(mask) for mask in masks.kv_groups],
            [convert(mask) for mask in masks.q_heads],
            [convert(mask) for mask in masks.ffn],
            convert(masks.hidden),
            convert(masks.attn),
            convert(masks.mlp),
        )


class AppliedGates:
    """Gates while they act on a model; `remove()`, or leaving the `with` block, takes every hook away."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> AppliedGates:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def apply_gates(
    model: PreTrainedModel, anatomy: Anatomy, gates: Gates, *, mlp_placement: MLPPlacement = "product", keeps_factors: bool = False
) -> AppliedGates:
    """Makes the forward pass of `model` use `gates`.

    Args:
        model: the causal LM itself, not a peft wrapper (`wrapper.get_base_model()` has the same module paths).
        mlp_placement: "product" gates the input of the down projection, so a soft value scales a channel linearly;
            "branches" gates both gate and up projections, as the official code does. Equal for 0 and 1.
        keeps_factors: for training with "product": less memory for the same gradients (see `_GatedProduct`); not together
            with gradient checkpointing, which must not be asked for saved tensors in the forward pass.
    """
    handles = [_on_output(model, anatomy.embedding, lambda: gates.hidden, gates)]
    for layer in anatomy.layers:
        if layer.attention:
            handles += _gate_attention(model, layer.attention, layer.index, gates)
        if layer.mlp:
            index, mlp = layer.index, layer.mlp

            def channels(index: int = index) -> Tensor | None:
                return None if gates.ffn is None else gates.ffn[index]

            if mlp_placement == "product":
                handles.append(_on_input(model, mlp.down, channels, gates, _gate_product if keeps_factors else _gate))
            else:
                handles += _gate_branches(model, mlp, channels, gates)
            handles.append(_on_output(model, mlp.down, _output_gate(gates, "mlp", index), gates))
    return AppliedGates(handles)


def apply_masks(model: PreTrainedModel, anatomy: Anatomy, masks: Masks) -> AppliedGates:
    """Makes `model` compute what the model sliced by `masks` computes, without changing its tensors."""
    parameter = next(model.parameters())
    return apply_gates(model, anatomy, Gates.from_masks(masks, dtype=parameter.dtype, device=parameter.device))


def _gate_attention(model: PreTrainedModel, part: Attention, index: int, gates: Gates) -> list[RemovableHandle]:
    def head_gates() -> Tensor | None:  # (num_q_heads * head_dim,), here and below with a row a part where there are parts
        groups = _at(gates.kv_groups, index)
        groups = None if groups is None else groups.repeat_interleave(part.q_heads_per_group, dim=-1)
        heads = _product(groups, _at(gates.q_heads, index))
        return None if heads is None else heads.repeat_interleave(part.head_dim, dim=-1)

    def group_gates() -> Tensor | None:  # (num_kv_groups * head_dim,)
        groups = _at(gates.kv_groups, index)
        return None if groups is None else groups.repeat_interleave(part.head_dim, dim=-1)

    handles = [
        _on_input(model, part.o, head_gates, gates),
        _on_output(model, part.o, _output_gate(gates, "attn", index), gates),
    ]
    if part.qk_norm_spans_heads:  # a removed head must not enter the norm that the kept heads share
        handles.append(_on_output(model, part.q.module, head_gates, gates))
        handles.append(_on_output(model, part.k.module, group_gates, gates))
    return handles


def _gate_branches(model: PreTrainedModel, mlp: MLP, channels: Callable[[], Tensor | None], gates: Gates) -> list[RemovableHandle]:
    if mlp.gate.module != mlp.up.module:
        return [_on_output(model, module, channels, gates) for module in (mlp.gate.module, mlp.up.module)]

    def both_halves() -> Tensor | None:
        gate = channels()
        return None if gate is None else torch.cat([gate, gate], dim=-1)

    return [_on_output(model, mlp.gate.module, both_halves, gates)]


def _output_gate(gates: Gates, sublayer: Literal["attn", "mlp"], index: int) -> Callable[[], Tensor | None]:
    return lambda: _product(gates.hidden, _at(getattr(gates, sublayer), index))


def _at(gates: Sequence[Tensor] | Tensor | None, index: int) -> Tensor | None:
    return None if gates is None else gates[index]


def _product(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left * right


def _times(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """x * gate, every part of the tokens by its own row of the gate."""
    if parts is None or gate.dim() < 2:
        return x * gate
    out = torch.empty_like(x)
    for i, (start, end) in enumerate(_bounds(parts, x.shape[-2])):
        torch.mul(x[..., start:end, :], gate[i], out=out[..., start:end, :])
    return out


def _sum_over_tokens(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """(units,) or, with parts, (parts, units): the gradient of a gate from that of each token."""
    if parts is None or gate.dim() < 2:
        return x.flatten(0, -2).sum(0)
    return torch.stack([x[..., start:end, :].flatten(0, -2).sum(0) for start, end in _bounds(parts, x.shape[-2])])


def _bounds(parts: tuple[int, ...], length: int) -> list[tuple[int, int]]:
    ends = list(itertools.accumulate(parts))
    return list(zip([0, *ends[:-1]], [*ends[:-1], length], strict=True))


class _Gated(torch.autograd.Function):
    """x * gate by parts, without a second copy of x."""

    @staticmethod
    def forward(context: Any, x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
        context.save_for_backward(x, gate)
        context.parts = parts
        return _times(x, gate, parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gate = context.saved_tensors
        return _times(gradient, gate, context.parts), _sum_over_tokens(gradient * x, gate, context.parts), None


class _GatedProduct(torch.autograd.Function):
    """x * gate for an x that is left * right: keeps both factors, which x's own backward keeps anyway, instead of x.

    The activation of every MLP channel would otherwise live twice until the backward pass.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, gate: Tensor, parts: Parts, left: Tensor, right: Tensor) -> Tensor:
        context.save_for_backward(gate, left, right)
        context.parts = parts
        return _times(x, gate, parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gate, left, right = context.saved_tensors
        of_gate = _sum_over_tokens((gradient * left).mul_(right), gate, context.parts)
        return _times(gradient, gate, context.parts), of_gate, None, None, None


def _gate(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    return x * gate if parts is None else _Gated.apply(x, gate, parts)


def _gate_product(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    node: Any = x.grad_fn
    if torch.is_grad_enabled() and gate.requires_grad and node is not None and node.name() == "MulBackward0":
        left, right = node._saved_self, node._saved_other
        if left is not None and right is not None and left.shape == right.shape == x.shape:
            return _GatedProduct.apply(x, gate, parts, left.detach(), right.detach())
    return _gate(x, gate, parts)


def _on_input(
    model: nn.Module,
    path: str,
    read: Callable[[], Tensor | None],
    gates: Gates,
    gated: Callable[[Tensor, Tensor, Parts], Tensor] = _gate,
) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        gate = read()
        return None if gate is None else (gated(inputs[0], gate.to(inputs[0].device, inputs[0].dtype), gates.parts), *inputs[1:])

    return model.get_submodule(path).register_forward_pre_hook(hook)


def _on_output(model: nn.Module, path: str, read: Callable[[], Tensor | None], gates: Gates) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        gate = read()
        return None if gate is None else _gate(output, gate.to(output.device, output.dtype), gates.parts)

    return model.get_submodule(path).register_forward_hook(hook)
