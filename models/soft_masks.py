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
Gated = Callable[[Tensor, Tensor, Parts], Tensor]
PIECE_BYTES = 1 << 19
"""Of activations gated at once on a CPU in the backward pass: a few such pieces stay in its cache."""


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
    model: PreTrainedModel, anatomy: Anatomy, gates: Gates, *, mlp_placement: MLPPlacement = "product", in_training: bool = False
) -> AppliedGates:
    """Makes the forward pass of `model` use `gates`.

    Args:
        model: the causal LM itself, not a peft wrapper (`wrapper.get_base_model()` has the same module paths).
        mlp_placement: "product" gates the input of the down projection, so a soft value scales a channel linearly;
            "branches" gates both gate and up projections, as the official code does. Equal for 0 and 1.
        in_training: the same values and gradients in less time and memory. Tensors that only the gated module reads are
            overwritten, so no other hook may keep them; backward passes work once; not together with gradient checkpointing,
            which must not be asked for saved tensors in the forward pass.
    """
    gated = _gate_fresh if in_training else _gate
    handles = [_on_output(model, anatomy.embedding, lambda: gates.hidden, gates, gated)]
    for layer in anatomy.layers:
        if layer.attention:
            handles += _gate_attention(model, layer.attention, layer.index, gates, gated)
        if layer.mlp:
            index, mlp = layer.index, layer.mlp

            def channels(index: int = index) -> Tensor | None:
                return None if gates.ffn is None else gates.ffn[index]

            if mlp_placement == "product":
                handles.append(_on_input(model, mlp.down, channels, gates, _gate_product if in_training else _gate))
            else:
                handles += _gate_branches(model, mlp, channels, gates, gated)
            handles.append(_on_output(model, mlp.down, _output_gate(gates, "mlp", index), gates, gated))
    return AppliedGates(handles)


def apply_masks(model: PreTrainedModel, anatomy: Anatomy, masks: Masks) -> AppliedGates:
    """Makes `model` compute what the model sliced by `masks` computes, without changing its tensors."""
    parameter = next(model.parameters())
    return apply_gates(model, anatomy, Gates.from_masks(masks, dtype=parameter.dtype, device=parameter.device))


def _gate_attention(model: PreTrainedModel, part: Attention, index: int, gates: Gates, gated: Gated) -> list[RemovableHandle]:
    def head_gates() -> Tensor | None:  # (num_q_heads * head_dim,), here and below with a row a part where there are parts
        groups = _at(gates.kv_groups, index)
        groups = None if groups is None else groups.repeat_interleave(part.q_heads_per_group, dim=-1)
        heads = _product(groups, _at(gates.q_heads, index))
        return None if heads is None else heads.repeat_interleave(part.head_dim, dim=-1)

    def group_gates() -> Tensor | None:  # (num_kv_groups * head_dim,)
        groups = _at(gates.kv_groups, index)
        return None if groups is None else groups.repeat_interleave(part.head_dim, dim=-1)

    handles = [
        _on_input(model, part.o, head_gates, gates, gated),
        _on_output(model, part.o, _output_gate(gates, "attn", index), gates, gated),
    ]
    if part.qk_norm_spans_heads:  # a removed head must not enter the norm that the kept heads share
        handles.append(_on_output(model, part.q.module, head_gates, gates, gated))
        handles.append(_on_output(model, part.k.module, group_gates, gates, gated))
    return handles


def _gate_branches(
    model: PreTrainedModel, mlp: MLP, channels: Callable[[], Tensor | None], gates: Gates, gated: Gated
) -> list[RemovableHandle]:
    if mlp.gate.module != mlp.up.module:
        return [_on_output(model, module, channels, gates, gated) for module in (mlp.gate.module, mlp.up.module)]

    def both_halves() -> Tensor | None:
        gate = channels()
        return None if gate is None else torch.cat([gate, gate], dim=-1)

    return [_on_output(model, mlp.gate.module, both_halves, gates, gated)]


def _output_gate(gates: Gates, sublayer: Literal["attn", "mlp"], index: int) -> Callable[[], Tensor | None]:
    return lambda: _product(gates.hidden, _at(getattr(gates, sublayer), index))


def _at(gates: Sequence[Tensor] | Tensor | None, index: int) -> Tensor | None:
    return None if gates is None else gates[index]


def _product(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left * right


def _times(x: Tensor, gate: Tensor, parts: Parts, out: Tensor | None = None) -> Tensor:
    """x * gate, every part of the tokens by its own row of the gate; into `out`, which may be x."""
    if parts is None or gate.dim() < 2:
        return torch.mul(x, gate, out=out)
    out = torch.empty_like(x) if out is None else out
    for i, (start, end) in enumerate(_bounds(x, gate, parts)):
        torch.mul(x[..., start:end, :], gate[i], out=out[..., start:end, :])
    return out


def _bounds(x: Tensor, gate: Tensor, parts: Parts) -> list[tuple[int, int]]:
    """First and last token + 1 on which each row of the gate acts, among all tokens of x."""
    length = x.numel() // x.shape[-1]
    if parts is None or gate.dim() < 2:
        return [(0, length)]
    ends = list(itertools.accumulate(parts))
    return list(zip([0, *ends[:-1]], [*ends[:-1], length], strict=True))


class _Gated(torch.autograd.Function):
    """x * gate."""

    @staticmethod
    def forward(context: Any, x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
        context.save_for_backward(x, gate)
        context.parts = parts
        return _times(x, gate, parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gate = context.saved_tensors
        of_each = (gradient * x).flatten(0, -2)
        of_gate = torch.stack([of_each[start:end].sum(0) for start, end in _bounds(x, gate, context.parts)])
        return _times(gradient, gate, context.parts), of_gate.view_as(gate), None


class _GatedProduct(torch.autograd.Function):
    """left * right * gate, written into `product`, which holds left * right, is nobody else's, and comes in a list so that autograd
    takes what is returned for a new tensor.

    The activation of every MLP channel would otherwise live twice until the backward pass, and be read and written once more.
    """

    @staticmethod
    def forward(context: Any, left: Tensor, right: Tensor, gate: Tensor, parts: Parts, product: list[Tensor]) -> Tensor:
        context.save_for_backward(left, right, gate)
        context.parts = parts
        return _times(product[0], gate, parts, out=product[0])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        left, right, gate = context.saved_tensors
        of_left, of_right = left.new_empty(left.shape), right.new_empty(right.shape)
        of_gate = torch.zeros_like(_rows(gate), dtype=torch.float32)
        of_output, lefts, rights, into_left, into_right = (t.flatten(0, -2) for t in (gradient, left, right, of_left, of_right))
        step = max(1, PIECE_BYTES // (left.element_size() * left.shape[-1])) if left.device.type == "cpu" else len(lefts)
        for i, (start, end) in enumerate(_bounds(left, gate, context.parts)):
            for at in range(start, end, step):
                rows = slice(at, min(at + step, end))
                here = torch.mul(of_output[rows], rights[rows], out=into_left[rows])
                of_gate[i] += (here * lefts[rows]).sum(0, dtype=torch.float32)
                here.mul_(_rows(gate)[i])
                torch.mul(of_output[rows], lefts[rows], out=into_right[rows]).mul_(_rows(gate)[i])
        return of_left, of_right, of_gate.to(gate.dtype).view_as(gate), None, None


def _rows(gate: Tensor) -> Tensor:
    """(parts or 1, units)"""
    return gate if gate.dim() == 2 else gate[None]


def _gate(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    return x * gate if parts is None else _Gated.apply(x, gate, parts)


def _gate_fresh(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """As `_gate`, for an x that only the next module reads: without gradient in its place."""
    return _Gated.apply(x, gate, parts) if torch.is_grad_enabled() else _times(x, gate, parts, out=x)


def _gate_product(x: Tensor, gate: Tensor, parts: Parts) -> Tensor:
    """As `_gate_fresh`, for an x that is a product."""
    node: Any = x.grad_fn
    if torch.is_grad_enabled() and gate.requires_grad and node is not None and node.name() == "MulBackward0":
        left, right = node._saved_self, node._saved_other
        if left is not None and right is not None and left.shape == right.shape == x.shape:
            return _GatedProduct.apply(left, right, gate, parts, [x.detach()])
    return _gate_fresh(x, gate, parts)


def _on_input(model: nn.Module, path: str, read: Callable[[], Tensor | None], gates: Gates, gated: Gated) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        gate = read()
        return None if gate is None else (gated(inputs[0], gate.to(inputs[0].device, inputs[0].dtype), gates.parts), *inputs[1:])

    return model.get_submodule(path).register_forward_pre_hook(hook)


def _on_output(model: nn.Module, path: str, read: Callable[[], Tensor | None], gates: Gates, gated: Gated) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        gate = read()
        return None if gate is None else gated(output, gate.to(output.device, output.dtype), gates.parts)

    return model.get_submodule(path).register_forward_hook(hook)
