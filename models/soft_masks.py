"""Masks in the forward pass: hard or soft gates applied by hooks, removable without trace.

Placement follows Compresso (arXiv 2310.05015, official code; spec sections 3, 4, 12, 13): head gates on the input of
the output projection, channel gates on the input of the down projection, one residual gate on the embedding and on
every sub-layer's output. A gated residual dimension is exactly zero everywhere, and every norm keeps dividing by the
dense width, which `models.slice` reproduces exactly.
"""

from __future__ import annotations

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


@dataclass
class Gates:
    """Real-valued gates of the shapes of `Masks`; None means one. They may require gradients and may be reassigned
    (a new draw each step) while applied: the hooks read the attributes anew in every forward pass."""

    kv_groups: Sequence[Tensor] | None = None
    q_heads: Sequence[Tensor] | None = None
    ffn: Sequence[Tensor] | None = None
    hidden: Tensor | None = None
    attn: Tensor | None = None
    mlp: Tensor | None = None

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
    handles = [_on_output(model, anatomy.embedding, lambda: gates.hidden)]
    for layer in anatomy.layers:
        if layer.attention:
            handles += _gate_attention(model, layer.attention, layer.index, gates)
        if layer.mlp:
            index, mlp = layer.index, layer.mlp

            def channels(index: int = index) -> Tensor | None:
                return None if gates.ffn is None else gates.ffn[index]

            if mlp_placement == "product":
                handles.append(_on_input(model, mlp.down, channels, _gate_product if keeps_factors else torch.mul))
            else:
                handles += _gate_branches(model, mlp, channels)
            handles.append(_on_output(model, mlp.down, _output_gate(gates, "mlp", index)))
    return AppliedGates(handles)


def apply_masks(model: PreTrainedModel, anatomy: Anatomy, masks: Masks) -> AppliedGates:
    """Makes `model` compute what the model sliced by `masks` computes, without changing its tensors."""
    parameter = next(model.parameters())
    return apply_gates(model, anatomy, Gates.from_masks(masks, dtype=parameter.dtype, device=parameter.device))


def _gate_attention(model: PreTrainedModel, part: Attention, index: int, gates: Gates) -> list[RemovableHandle]:
    def head_gates() -> Tensor | None:  # (num_q_heads * head_dim,)
        groups = _at(gates.kv_groups, index)
        groups = None if groups is None else groups.repeat_interleave(part.q_heads_per_group)
        heads = _product(groups, _at(gates.q_heads, index))
        return None if heads is None else heads.repeat_interleave(part.head_dim)

    def group_gates() -> Tensor | None:  # (num_kv_groups * head_dim,)
        groups = _at(gates.kv_groups, index)
        return None if groups is None else groups.repeat_interleave(part.head_dim)

    handles = [
        _on_input(model, part.o, head_gates),
        _on_output(model, part.o, _output_gate(gates, "attn", index)),
    ]
    if part.qk_norm_spans_heads:  # a removed head must not enter the norm that the kept heads share
        handles.append(_on_output(model, part.q.module, head_gates))
        handles.append(_on_output(model, part.k.module, group_gates))
    return handles


def _gate_branches(model: PreTrainedModel, mlp: MLP, channels: Callable[[], Tensor | None]) -> list[RemovableHandle]:
    if mlp.gate.module != mlp.up.module:
        return [_on_output(model, module, channels) for module in (mlp.gate.module, mlp.up.module)]

    def both_halves() -> Tensor | None:
        gate = channels()
        return None if gate is None else gate.repeat(2)

    return [_on_output(model, mlp.gate.module, both_halves)]


def _output_gate(gates: Gates, sublayer: Literal["attn", "mlp"], index: int) -> Callable[[], Tensor | None]:
    return lambda: _product(gates.hidden, _at(getattr(gates, sublayer), index))


def _at(gates: Sequence[Tensor] | Tensor | None, index: int) -> Tensor | None:
    return None if gates is None else gates[index]


def _product(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left * right


class _GatedProduct(torch.autograd.Function):
    """x * gate for an x that is left * right: keeps both factors, which x's own backward keeps anyway, instead of x.

    The activation of every MLP channel would otherwise live twice until the backward pass.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, gate: Tensor, left: Tensor, right: Tensor) -> Tensor:
        context.save_for_backward(gate, left, right)
        return x * gate

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gate, left, right = context.saved_tensors
        of_gate = (gradient * left).mul_(right).flatten(0, -2).sum(0)
        return gradient * gate, of_gate, None, None


def _gate_product(x: Tensor, gate: Tensor) -> Tensor:
    node: Any = x.grad_fn
    if torch.is_grad_enabled() and gate.requires_grad and node is not None and node.name() == "MulBackward0":
        left, right = node._saved_self, node._saved_other
        if left is not None and right is not None and left.shape == right.shape == x.shape:
            return _GatedProduct.apply(x, gate, left.detach(), right.detach())
    return x * gate


def _on_input(
    model: nn.Module, path: str, read: Callable[[], Tensor | None], gated: Callable[[Tensor, Tensor], Tensor] = torch.mul
) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        gate = read()
        return None if gate is None else (gated(inputs[0], gate.to(inputs[0].device, inputs[0].dtype)), *inputs[1:])

    return model.get_submodule(path).register_forward_pre_hook(hook)


def _on_output(model: nn.Module, path: str, read: Callable[[], Tensor | None]) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        gate = read()
        return None if gate is None else output * gate.to(output.device, output.dtype)

    return model.get_submodule(path).register_forward_hook(hook)
