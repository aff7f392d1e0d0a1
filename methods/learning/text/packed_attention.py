"""This module computes attention within a packed row one example at a time, without pairs of tokens that never see each other.

A dense mask over the row costs the square of its length; a row of ten examples spends nine tenths of that on nothing. Under
`packed_attention(model)` the model's attention modules hand their rotated queries, keys and values to the function below, which
splits them by the `Layout` that came along with the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from prunebench.models.gating.attention_interface import attention_function

IMPLEMENTATION = "prunebench_packed"
"""Name under which the attention function is registered with transformers."""


@dataclass(frozen=True)
class Layout:
    """Describes a row: `prefix` tokens that every example sees, then examples of these `lengths` that don't see one another."""

    lengths: tuple[int, ...]
    prefix: int = 0

    @property
    def parts(self) -> list[int]:
        return [self.prefix, *self.lengths] if self.prefix else list(self.lengths)


def can_split(model: PreTrainedModel) -> bool:
    """Tells whether a model's attention can be split so: plain softmax attention in every layer, without windows or soft caps."""
    config = model.config.get_text_config()
    return (
        model.config._attn_implementation in ("sdpa", IMPLEMENTATION)
        and getattr(config, "sliding_window", None) is None
        and getattr(config, "attn_logit_softcapping", None) is None
    )


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Splits the attention of `model` within a block, whose calls need `packed=Layout(...)` and no mask; tells whether it does. Nests.

    Where activations are computed again in the backward pass, that must happen within the block too.
    """
    if not can_split(model):
        yield False
        return
    with attention_function(model, IMPLEMENTATION, _attend):
        yield True


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Layout,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attends within each part of `packed`, as transformers' attention functions do: (1, heads, tokens, dim) -> (1, tokens, heads, dim)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    on_cpu = query.device.type == "cpu"  # where bfloat16 makes this kernel slower, unlike the matrix products around it
    with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
        if on_cpu:
            key, value = key.to(query.dtype), value.to(query.dtype)
        rows = list(zip(*(states.split(packed.parts, 2) for states in (query, key, value)), strict=True))
        outputs = []
        if packed.prefix:
            first, shared_key, shared_value = rows.pop(0)
            outputs.append(scaled_dot_product_attention(first, shared_key, shared_value, is_causal=True, scale=scaling))
        for q, k, v in rows:
            if packed.prefix:
                sees = torch.ones(q.shape[2], packed.prefix + k.shape[2], dtype=torch.bool, device=q.device).tril(packed.prefix)
                k, v = torch.cat([shared_key, k], 2), torch.cat([shared_value, v], 2)
                outputs.append(scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scaling))
            else:
                outputs.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling))
    return torch.cat(outputs, 2).transpose(1, 2), None
