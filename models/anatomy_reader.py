"""Reads an `Anatomy` from a model's modules; refuses what it can't account for."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from prunebench.models.anatomy import MLP, Anatomy, Attention, Layer, Rows
from prunebench.models.errors import UnsupportedModel
from prunebench.models.modeling_pruned import sublayer_norms


def read_anatomy(model: PreTrainedModel) -> Anatomy:
    """See `Anatomy.from_model`."""
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers: Any = getattr(decoder, "layers", None)
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    final_norm: Any = getattr(decoder, "norm", None)
    for module, what in (
        (layers, "a list of decoder layers `layers`"),
        (embedding, "an input embedding"),
        (head, "an output head"),
        (final_norm, "a final norm `norm`"),
    ):
        if module is None:
            raise UnsupportedModel(
                f"model type {_model_type(model)!r} has no module that serves as {what} of a decoder; "
                "supported are decoder-only language models of the Llama kind."
            )
    paths = {id(module): name for name, module in model.named_modules()}
    hidden = embedding.weight.shape[1]
    offsets = {
        _norm_offset(child, f"{paths[id(parent)]}.{name}")
        for parent in (decoder, *layers)
        for name, child in parent.named_children()
        if name == "norm" or ("norm" in name and not isinstance(child, nn.Identity))
    }
    if len(offsets) != 1:
        raise UnsupportedModel(f"model type {_model_type(model)!r} mixes norms of different kinds in one residual stream.")
    is_tied = head.weight is embedding.weight
    anatomy = Anatomy(
        model_type=_model_type(model),
        hidden_size=hidden,
        vocab_size=embedding.weight.shape[0],
        layers=tuple(_read_layer(layer, paths[id(layer)], i, hidden) for i, layer in enumerate(layers)),
        decoder=paths[id(decoder)],
        embedding=paths[id(embedding)],
        head=paths[id(head)],
        final_norm=paths[id(final_norm)],
        is_tied=is_tied,
        head_bias=getattr(head, "bias", None) is not None,
        norm_offset=offsets.pop(),
    )
    _refuse_leftovers(model, anatomy)
    return anatomy


def _model_type(model: PreTrainedModel) -> str:
    return str(model.config.model_type)


def _child(parent: nn.Module, path: str, name: str) -> nn.Module:
    child = getattr(parent, name, None)
    if not isinstance(child, nn.Module):
        raise UnsupportedModel(f"looked for the module {path}.{name}, which is not there; its parent is {type(parent).__name__}.")
    return child


def _linear(parent: nn.Module, path: str, name: str) -> nn.Linear:
    child = _child(parent, path, name)
    if not isinstance(getattr(child, "weight", None), torch.Tensor) or child.weight.ndim != 2:
        raise UnsupportedModel(f"{path}.{name} is a {type(child).__name__}, where a linear projection was looked for.")
    return cast(nn.Linear, child)


def _read_layer(layer: nn.Module, path: str, index: int, hidden: int) -> Layer:
    norms = {part: tuple(f"{path}.{name}" for name in names) for part, names in sublayer_norms(layer).items()}
    attention = _child(layer, path, "self_attn")
    mlp = _child(layer, path, "mlp")
    return Layer(
        index,
        path,
        None if _is_absent(attention) else _read_attention(attention, f"{path}.self_attn", norms["self_attn"], hidden),
        None if _is_absent(mlp) else _read_mlp(mlp, f"{path}.mlp", norms["mlp"]),
    )


def _is_absent(module: nn.Module) -> bool:
    return getattr(module, "is_pruned_away", False)


def _read_attention(module: nn.Module, path: str, norms: tuple[str, ...], hidden: int) -> Attention:
    head_dim = getattr(module, "head_dim", None)
    if not isinstance(head_dim, int):
        raise UnsupportedModel(f"looked for the attribute {path}.head_dim, which is not there.")
    output = _linear(module, path, "o_proj")
    q_width = output.weight.shape[1]
    if hasattr(module, "qkv_proj"):
        inputs = [_linear(module, path, "qkv_proj")]
        kv_width = (inputs[0].weight.shape[0] - q_width) // 2
        q = Rows(f"{path}.qkv_proj", 0, q_width)
        k = Rows(f"{path}.qkv_proj", q_width, kv_width)
        v = Rows(f"{path}.qkv_proj", q_width + kv_width, kv_width)
    else:
        inputs = [_linear(module, path, name) for name in ("q_proj", "k_proj", "v_proj")]
        kv_width = inputs[1].weight.shape[0]
        q, k, v = (
            Rows(f"{path}.{name}", 0, projection.weight.shape[0])
            for name, projection in zip(("q_proj", "k_proj", "v_proj"), inputs, strict=True)
        )
    if q.count != q_width or v.count != kv_width or q_width % head_dim or kv_width % head_dim or q_width % kv_width:
        raise UnsupportedModel(
            f"{path} has projections of {q.count} query, {k.count} key, {v.count} value rows and {q_width} output "
            f"columns, which are not whole heads of size {head_dim} in equal groups."
        )
    qk_norms = [name for name in ("q_norm", "k_norm") if getattr(module, name, None) is not None]
    widths = [getattr(module, name).weight.numel() for name in qk_norms]
    if widths not in ([], [head_dim, head_dim], [q_width, kv_width]):
        raise UnsupportedModel(f"{path} has norms {qk_norms} of widths {widths}; looked for q_norm and k_norm per head or over all heads.")
    return Attention(
        path=path,
        q=q,
        k=k,
        v=v,
        o=f"{path}.o_proj",
        head_dim=head_dim,
        num_kv_groups=kv_width // head_dim,
        q_heads_per_group=q_width // kv_width,
        in_bias=_common_bias(inputs, path),
        out_bias=output.bias is not None,
        qk_norms=tuple(f"{path}.{name}" for name in qk_norms),
        qk_norm_spans_heads=widths == [q_width, kv_width] and widths != [head_dim, head_dim],
        norms=norms,
    )


def _read_mlp(module: nn.Module, path: str, norms: tuple[str, ...]) -> MLP:
    output = _linear(module, path, "down_proj")
    width = output.weight.shape[1]
    if hasattr(module, "gate_up_proj"):
        inputs = [_linear(module, path, "gate_up_proj")]
        gate, up = Rows(f"{path}.gate_up_proj", 0, width), Rows(f"{path}.gate_up_proj", width, width)
    else:
        inputs = [_linear(module, path, name) for name in ("gate_proj", "up_proj")]
        gate, up = Rows(f"{path}.gate_proj", 0, width), Rows(f"{path}.up_proj", 0, width)
    return MLP(path, gate, up, f"{path}.down_proj", width, _common_bias(inputs, path), output.bias is not None, norms)


def _common_bias(projections: list[nn.Linear], path: str) -> bool:
    has_bias = {projection.bias is not None for projection in projections}
    if len(has_bias) != 1:
        raise UnsupportedModel(f"{path}: some of its input projections have a bias and some have none.")
    return has_bias.pop()


def _norm_offset(norm: nn.Module, path: str) -> float:
    """Finds by trying whether an RMS norm multiplies by its weight (0.0) or by one plus its weight (1.0).

    Raises:
        UnsupportedModel: it is not an RMS norm (it subtracts the mean, or has a bias).
    """
    refusal = UnsupportedModel(f"{path} is a {type(norm).__name__}, where an RMS norm with one weight was looked for.")
    if [(name, parameter.ndim) for name, parameter in norm.named_parameters()] != [("weight", 1)]:
        raise refusal
    with torch.device("cpu"), torch.no_grad():
        try:
            probe: Any = type(norm)(2)
        except TypeError:
            raise refusal from None
        probe.weight.zero_()
        at_zero = probe(torch.tensor([[1.0, 1.0]]))
        probe.weight.fill_(1.0)
        skewed = probe(torch.tensor([[4.0, 0.0]]))
    offset = float(at_zero.mean().round())
    if offset not in (0.0, 1.0) or abs(float(skewed[0, 1])) > 1e-6:
        raise refusal
    return offset


def _refuse_leftovers(model: PreTrainedModel, anatomy: Anatomy) -> None:
    known = {anatomy.embedding, anatomy.head, anatomy.final_norm}
    for layer in anatomy.layers:
        if layer.attention:
            part = layer.attention
            known |= {part.q.module, part.k.module, part.v.module, part.o, *part.qk_norms, *part.norms}
        if layer.mlp:
            known |= {layer.mlp.gate.module, layer.mlp.up.module, layer.mlp.down, *layer.mlp.norms}
    for name, _ in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if module not in known or leaf not in ("weight", "bias"):
            raise UnsupportedModel(
                f"model type {anatomy.model_type!r} has the parameter {name}, which belongs to no attention head, MLP channel, "
                "norm, embedding or output head that prunebench knows how to prune."
            )
