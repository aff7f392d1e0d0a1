"""This module folds gate values into the weights, so that the plain model computes what the gated one did.

After folding, units with gate 0 have no effect and can be cut, and the others carry their scale in the weights. Head gates go
into the columns of the output projection, never into v rows, which several query heads share (docs/methods/compresso.md, "From gates
to a smaller model").
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.models.anatomy import MLP, Anatomy, Attention
from prunebench.models.gating.soft_masks import Gates, MLPPlacement


@torch.no_grad()
def fold_gates(model: PreTrainedModel, anatomy: Anatomy, gates: Gates, mlp_placement: MLPPlacement = "product") -> None:
    """Multiplies `gates` into the weights of `model`, in place, in float32, cast back once.

    With tied embeddings the residual gate would also scale the output head; the final norm takes it back, its gain divided by
    the gate where that is not 0. Only KV-group, query-head, channel and residual gates are folded.
    """
    hidden = gates.hidden
    if hidden is not None:
        _scale(model, anatomy.embedding, columns=hidden)
        if anatomy.is_tied:
            norm = model.get_submodule(anatomy.final_norm).weight
            assert isinstance(norm, Tensor)
            divisor = torch.where(hidden > 0, hidden, torch.ones_like(hidden)).to(norm.device).double()
            norm.copy_((norm.double() + anatomy.norm_offset) / divisor - anatomy.norm_offset)
    for layer in anatomy.layers:
        if layer.attention:
            _fold_attention(model, layer.attention, layer.index, gates)
        if layer.mlp:
            channels = None if gates.ffn is None else gates.ffn[layer.index]
            _fold_mlp(model, layer.mlp, channels, hidden, mlp_placement)


def _fold_attention(model: PreTrainedModel, part: Attention, index: int, gates: Gates) -> None:
    groups = None if gates.kv_groups is None else gates.kv_groups[index]
    heads = None if groups is None else groups.repeat_interleave(part.q_heads_per_group)
    if gates.q_heads is not None and gates.q_heads[index] is not None:
        heads = gates.q_heads[index] if heads is None else heads * gates.q_heads[index]
    columns = None if heads is None else heads.repeat_interleave(part.head_dim)
    _scale(model, part.o, rows=gates.hidden, columns=columns)
    if part.qk_norm_spans_heads:  # there the gates act before the norm that the heads share
        if columns is not None:
            _scale(model, part.q.module, rows=columns)
        if groups is not None:
            _scale(model, part.k.module, rows=groups.repeat_interleave(part.head_dim))


def _fold_mlp(model: PreTrainedModel, part: MLP, channels: Tensor | None, hidden: Tensor | None, placement: MLPPlacement) -> None:
    _scale(model, part.down, rows=hidden, columns=channels if placement == "product" else None)
    if placement == "branches" and channels is not None:
        if part.gate.module == part.up.module:
            _scale(model, part.gate.module, rows=channels.repeat(2))
        else:
            _scale(model, part.gate.module, rows=channels)
            _scale(model, part.up.module, rows=channels)


def _scale(model: PreTrainedModel, path: str, *, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    owner = model.get_submodule(path)
    weight, bias = owner.weight, getattr(owner, "bias", None)
    assert isinstance(weight, Tensor)
    scaled = weight.float()
    if rows is not None:
        scaled = scaled * rows.to(weight.device).float()[:, None]
        if isinstance(bias, Tensor):
            bias.copy_(bias.float() * rows.to(bias.device).float())
    if columns is not None:
        scaled = scaled * columns.to(weight.device).float()
    if rows is not None or columns is not None:
        weight.copy_(scaled)
