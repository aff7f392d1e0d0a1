"""This module applies masks in the forward pass: hard or soft gates that hooks multiply in, and that leave without trace.

Placement follows Compresso (arXiv 2310.05015, official code; docs/methods/compresso.md, eqs. 1 and 2): head gates on the input
of the output projection, channel gates on the input of the down projection, one residual gate on the embedding and on every
sub-layer's output. A gated residual dimension is exactly zero everywhere, and every norm keeps dividing by the
dense width, which `models.slice` reproduces exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from prunebench.models.anatomy import MLP, Anatomy, Attention
from prunebench.models.gating.gated_products import LEARNING, PLAIN, GateFunctions, Parts, Times
from prunebench.models.gating.open_channels import OpenChannels, OwnForward, Read, leave_out
from prunebench.models.masks import Masks

MLPPlacement = Literal["product", "branches"]
Handle = RemovableHandle | OwnForward


@dataclass
class Gates:
    """Holds real-valued gates of the shapes of `Masks`; None means one.

    They may require gradients and may be reassigned (a new draw each step) while applied: the hooks read the attributes anew in
    every forward pass.

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
        """Makes gates that are exactly 0 and 1."""

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
    """Holds the hooks of gates that act on a model; `remove()`, or leaving the `with` block, takes every one away."""

    def __init__(self, handles: list[Handle]) -> None:
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
        in_training: the same values and gradients in less time and memory, but for gates that are exactly 0 or 1, which may get no
            gradient (through a hard-concrete draw there is none): channels whose gate is 0 take no part in the products.
            Tensors that only the gated module reads are overwritten, so no other hook may keep them; hooks of others see MLPs
            without these channels, so that gates don't nest; not together with gradient checkpointing, which must not be asked for
            saved tensors in the forward pass.
    """
    functions = LEARNING if in_training else PLAIN
    open_channels = OpenChannels(lambda: gates.ffn) if in_training else None
    handles: list[Handle] = [_on_output(model, anatomy.embedding, lambda: gates.hidden, gates, functions.of_output)]
    for layer in anatomy.layers:
        if layer.attention:
            handles += _gate_attention(model, layer.attention, layer.index, gates, functions)
        if layer.mlp:
            handles += _gate_mlp(model, layer.mlp, layer.index, gates, functions, mlp_placement, open_channels)
    return AppliedGates(handles)


def apply_masks(model: PreTrainedModel, anatomy: Anatomy, masks: Masks) -> AppliedGates:
    """Makes `model` compute what the model sliced by `masks` computes, without changing its tensors."""
    parameter = next(model.parameters())
    return apply_gates(model, anatomy, Gates.from_masks(masks, dtype=parameter.dtype, device=parameter.device))


def _gate_attention(model: PreTrainedModel, part: Attention, index: int, gates: Gates, functions: GateFunctions) -> list[Handle]:
    def head_gates() -> Tensor | None:  # (num_q_heads * head_dim,), here and below with a row a part where there are parts
        groups = _at(gates.kv_groups, index)
        groups = None if groups is None else groups.repeat_interleave(part.q_heads_per_group, dim=-1)
        heads = _product(groups, _at(gates.q_heads, index))
        return None if heads is None else heads.repeat_interleave(part.head_dim, dim=-1)

    def group_gates() -> Tensor | None:  # (num_kv_groups * head_dim,)
        groups = _at(gates.kv_groups, index)
        return None if groups is None else groups.repeat_interleave(part.head_dim, dim=-1)

    handles: list[Handle] = [
        _on_input(model, part.o, head_gates, gates, functions.of_input),
        _on_output(model, part.o, _output_gate(gates, "attn", index), gates, functions.of_output),
    ]
    if part.qk_norm_spans_heads:  # a removed head must not enter the norm that the kept heads share
        handles.append(_on_output(model, part.q.module, head_gates, gates, functions.of_output))
        handles.append(_on_output(model, part.k.module, group_gates, gates, functions.of_output))
    return handles


def _gate_mlp(
    model: PreTrainedModel,
    mlp: MLP,
    index: int,
    gates: Gates,
    functions: GateFunctions,
    placement: MLPPlacement,
    open_channels: OpenChannels | None,
) -> list[Handle]:
    shorter = leave_out(model, mlp, partial(open_channels.of, index)) if open_channels else None

    def channels() -> Tensor | None:
        values = _at(gates.ffn, index)
        taking_part = open_channels.of(index) if open_channels and shorter else None
        return values if values is None or taking_part is None else values.index_select(-1, taking_part)

    def both_halves() -> Tensor | None:
        values = channels()
        return None if values is None else torch.cat([values, values], dim=-1)

    handles: list[Handle] = [*(shorter or [])]
    if placement == "product":
        handles.append(_on_input(model, mlp.down, channels, gates, functions.of_product))
    elif mlp.gate.module == mlp.up.module:
        handles.append(_on_output(model, mlp.gate.module, both_halves, gates, functions.of_output))
    else:
        handles += [_on_output(model, module, channels, gates, functions.of_output) for module in (mlp.gate.module, mlp.up.module)]
    return [*handles, _on_output(model, mlp.down, _output_gate(gates, "mlp", index), gates, functions.of_output)]


def _output_gate(gates: Gates, sublayer: Literal["attn", "mlp"], index: int) -> Read:
    return lambda: _product(gates.hidden, _at(getattr(gates, sublayer), index))


def _at(gates: Sequence[Tensor] | Tensor | None, index: int) -> Tensor | None:
    return None if gates is None else gates[index]


def _product(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left * right


def _on_input(model: nn.Module, path: str, read: Read, gates: Gates, times: Times) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        values = read()
        return None if values is None else (times(inputs[0], values.to(inputs[0].device), gates.parts), *inputs[1:])

    return model.get_submodule(path).register_forward_pre_hook(hook)


def _on_output(model: nn.Module, path: str, read: Read, gates: Gates, times: Times) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        values = read()
        return None if values is None else times(output, values.to(output.device), gates.parts)

    return model.get_submodule(path).register_forward_hook(hook)
