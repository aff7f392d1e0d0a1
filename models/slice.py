"""Makes a model physically smaller: cuts its tensors by masks and rebuilds it as a plain transformers causal LM."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunebench.models import modeling_pruned
from prunebench.models.anatomy import MLP, Anatomy, Attention
from prunebench.models.masks import Masks

MODELING_FILE = "modeling_pruned"  # the name under which models/modeling_pruned.py travels with a checkpoint


def slice_model(model: PreTrainedModel, masks: Masks) -> PreTrainedModel:
    """Cuts `model` down to what `masks` keep; the logits equal those of the masked model.

    The result is a `PrunedXForCausalLM`, a subclass of the stock `XForCausalLM` of the input, on the same devices and in
    the same dtype, in eval mode. It shares no memory with the input. Layers may differ in heads and channels, may lack
    attention or MLP, and the residual stream may be narrower. A pruned model can be sliced again.

    Raises:
        InvalidMasks: the masks don't fit the model or can't be sliced.
        UnsupportedModel: the model has parts that the anatomy can't read.
    """
    anatomy = Anatomy.from_model(model)
    masks.validate(anatomy)
    with torch.no_grad():
        tensors = _cut_tensors(model, anatomy, masks)
    base = type(model)
    model_class = base if hasattr(model.config, "pruning") else modeling_pruned.pruned_model_class(base)
    config = _pruned_config(model.config, model_class, anatomy, masks)
    with torch.device("meta"):
        pruned = model_class(config)
    missing, unexpected = pruned.load_state_dict(tensors, strict=False, assign=True)
    tied = {f"{anatomy.head}.weight"} if anatomy.is_tied else set()
    if set(missing) - tied or unexpected:
        raise RuntimeError(f"sliced tensors do not fit the rebuilt model: missing {missing}, unexpected {unexpected}")
    for name, buffer in list(pruned.named_buffers()):
        if buffer.is_meta:  # rotary frequencies and embedding scales are the dense model's own
            owner, _, leaf = name.rpartition(".")
            pruned.get_submodule(owner).register_buffer(leaf, model.get_buffer(name).clone(), persistent=False)
    pruned.tie_weights()
    if model.can_generate():
        pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned.eval()


def _cut_tensors(model: PreTrainedModel, anatomy: Anatomy, masks: Masks) -> dict[str, Tensor]:
    hidden = masks.hidden.nonzero().squeeze(1)
    tensors: dict[str, Tensor] = {}

    def cut(module: str, rows: Tensor | None, columns: Tensor | None) -> None:
        owner = cast(nn.Linear, model.get_submodule(module))  # or an embedding or a norm; all have a weight
        weight = owner.weight.detach()
        if rows is not None:
            weight = weight.index_select(0, rows.to(weight.device))
        if columns is not None:
            weight = weight.index_select(1, columns.to(weight.device))
        tensors[f"{module}.weight"] = weight.clone(memory_format=torch.contiguous_format)
        if getattr(owner, "bias", None) is not None:
            bias = owner.bias.detach()
            tensors[f"{module}.bias"] = (bias if rows is None else bias.index_select(0, rows.to(bias.device))).clone()

    def cut_norm(module: str, kept: Tensor) -> None:
        weight = cast(Tensor, model.get_submodule(module).weight).detach()
        scale = (len(weight) / len(kept)) ** 0.5
        gain = (weight.index_select(0, kept.to(weight.device)).double() + anatomy.norm_offset) * scale - anatomy.norm_offset
        tensors[f"{module}.weight"] = gain.to(weight.dtype)

    cut(anatomy.embedding, None, hidden)
    if not anatomy.is_tied:
        cut(anatomy.head, None, hidden)
    cut_norm(anatomy.final_norm, hidden)
    for layer in anatomy.layers:
        if layer.attention and masks.attn[layer.index]:
            part = layer.attention
            heads, groups = _attention_rows(part, masks, layer.index)
            rows: dict[str, list[Tensor]] = {}
            for site, kept in ((part.q, heads), (part.k, groups), (part.v, groups)):
                rows.setdefault(site.module, []).append(kept + site.start)
            for module, parts in rows.items():
                cut(module, torch.cat(parts), hidden)
            cut(part.o, hidden, heads)
            for norm, kept in zip(part.qk_norms, (heads, groups), strict=False):
                if part.qk_norm_spans_heads:
                    cut_norm(norm, kept)
                else:
                    cut(norm, None, None)
            for norm in part.norms:
                cut_norm(norm, hidden)
        if layer.mlp and masks.mlp[layer.index]:
            _cut_mlp(layer.mlp, masks.ffn[layer.index].nonzero().squeeze(1), hidden, cut)
            for norm in layer.mlp.norms:
                cut_norm(norm, hidden)
    return tensors


def _cut_mlp(part: MLP, channels: Tensor, hidden: Tensor, cut: Callable[[str, Tensor | None, Tensor | None], None]) -> None:
    if part.gate.module == part.up.module:
        cut(part.gate.module, torch.cat([channels + part.gate.start, channels + part.up.start]), hidden)
    else:
        cut(part.gate.module, channels, hidden)
        cut(part.up.module, channels, hidden)
    cut(part.down, hidden, channels)


def _attention_rows(part: Attention, masks: Masks, index: int) -> tuple[Tensor, Tensor]:
    """Row numbers of the kept query heads and of the kept KV groups, within q and within k or v."""
    offsets = torch.arange(part.head_dim)
    heads = masks.q_heads[index].nonzero() * part.head_dim + offsets  # (kept heads, head_dim)
    groups = masks.kv_groups[index].nonzero() * part.head_dim + offsets  # (kept groups, head_dim)
    return heads.flatten(), groups.flatten()


def _pruned_config(config: PreTrainedConfig, model_class: type[PreTrainedModel], anatomy: Anatomy, masks: Masks) -> PreTrainedConfig:
    settings = config.to_dict()
    earlier = getattr(config, "pruning", None)
    config_class = cast(type[PreTrainedConfig], model_class.config_class)
    head_dims = {layer.attention.head_dim for layer in anatomy.layers if layer.attention}
    if head_dims:
        settings["head_dim"] = head_dims.pop()
    settings["hidden_size"] = int(masks.hidden.sum())
    settings["per_layer_config"] = _per_layer(masks)
    settings["pruning"] = {
        "dense_hidden_size": earlier["dense_hidden_size"] if earlier else anatomy.hidden_size,
        "dense_heads": earlier["dense_heads"] if earlier else [list(anatomy.layer_sizes(layer.index)[:2]) for layer in anatomy.layers],
        "output_biases": {
            "o_proj": [layer.index for layer in anatomy.layers if layer.attention and layer.attention.out_bias],
            "down_proj": [layer.index for layer in anatomy.layers if layer.mlp and layer.mlp.out_bias],
        },
        "qk_norm_spans_heads": any(layer.attention and layer.attention.qk_norm_spans_heads for layer in anatomy.layers),
    }
    settings["architectures"] = [model_class.__name__]
    settings["auto_map"] = {
        "AutoConfig": f"{MODELING_FILE}.{config_class.__name__}",
        "AutoModelForCausalLM": f"{MODELING_FILE}.{model_class.__name__}",
    }
    pruned = config_class.from_dict(settings)
    pruned._attn_implementation = config._attn_implementation
    return pruned


def _per_layer(masks: Masks) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for i in range(len(masks.ffn)):
        entry: dict[str, Any] = {}
        skip = []
        if masks.attn[i]:
            entry["num_attention_heads"] = int(masks.q_heads[i].sum())
            entry["num_key_value_heads"] = int(masks.kv_groups[i].sum())
        else:
            skip.append("self_attn")
        if masks.mlp[i]:
            entry["intermediate_size"] = int(masks.ffn[i].sum())
        else:
            skip.append("mlp")
        layers[str(i)] = entry | ({"skip": skip} if skip else {})
    return layers
