"""Tree attention behind transformers' attention interface, so that any stock or pruned layer can use it.

While `tree_attention(model, row)` is active, every attention module of the model hands its rotated queries, keys and
values to `row.attend`. The row knows which tokens see each other, and which kept prefix stands before them; the
model needs no cache and no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.evaluation.engine.prefix_tree import Segment, Unit
from prunebench.models.gating.attention_interface import attention_function

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "prunebench_tree"
"""Name under which the attention function is registered with transformers."""


class UnsupportedAttention(Exception):
    """The model's attention asks for something that the shared form can't give; the caller falls back."""


class Row(Protocol):
    """One packed forward pass."""

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor: ...


_active: list[Row] = []


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extra: object,
) -> tuple[Tensor, None]:
    """Signature of transformers' attention functions; query (1, heads, tokens, dim) -> (1, tokens, heads, dim)."""
    for name in ("position_bias", "s_aux"):
        if extra.get(name) is not None:
            raise UnsupportedAttention(f"attention with '{name}'")
    if not _active:
        raise UnsupportedAttention("attention outside of a packed row")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return _active[-1].attend(module, query, key, value, scaling, sliding_window, softcap), None


def tree_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Switches the attention of the model to the tree form, and back."""
    return attention_function(model, IMPLEMENTATION, _interface)


@contextmanager
def active_row(row: Row) -> Iterator[None]:
    """Attention goes to this row inside the block."""
    _active.append(row)
    try:
        yield
    finally:
        _active.pop()


class Prefix:
    """Keys and values of a path from the root of the tree, for every attention module that was called on it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # id(module) -> (1, kv_heads, length, dim) twice


SEGMENT_COST = {"cpu": 1000, "cuda": 250_000}
"""What one more attention call costs, in query-key pairs of all heads (measured on a CPU core, estimated for CUDA)."""


def segment_cost(device: torch.device) -> int:
    """The cost on this device; accelerators that weren't measured count like CUDA."""
    return SEGMENT_COST.get(device.type, SEGMENT_COST["cuda"])


@dataclass
class _Piece:
    """A segment placed in its row."""

    start: int
    stop: int
    ancestors: Tensor | None  # (a,) indices in the row
    unit: Unit
    segment: Segment


class PackedRow:
    """Units side by side under one prefix: each token sees the prefix and its own ancestors."""

    def __init__(self, units: list[Unit], prefix: Prefix | None, device: torch.device, dtype: torch.dtype) -> None:
        self.units = units
        self.prefix = prefix
        self.device = device
        self.dtype = dtype
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = None
        self.pieces: list[_Piece] = []
        self._masks: dict[tuple[int | None, torch.device], list[Tensor | None]] = {}
        start = 0
        for unit in units:
            for segment in unit.segments:
                ancestors = None
                if len(segment.ancestors):
                    ancestors = torch.as_tensor(start + segment.ancestors, device=device)
                self.pieces.append(_Piece(start + segment.start, start + segment.stop, ancestors, unit, segment))
            start += len(unit)

    @property
    def prefix_length(self) -> int:
        return self.prefix.length if self.prefix is not None else 0

    @property
    def windows(self) -> set[int]:
        """Window sizes that the model's layers asked for in this row."""
        return {window for window, _ in self._masks if window is not None}

    def keep(self) -> None:
        """Remember this row's own keys and values of every layer."""
        self.kept = {}

    def masks(self, window: int | None, device: torch.device | None = None) -> list[Tensor | None]:
        """Additive masks (n, prefix + ancestors + n), one a piece; None stands for plain causal attention.

        Args:
            device: where the layer is (a sharded model has several); the row's own by default.
        """
        key = (window, device or self.device)
        if key not in self._masks:
            masks = [self._mask(piece, window) for piece in self.pieces]
            self._masks[key] = [mask.to(key[1]) if mask is not None else None for mask in masks]
        return self._masks[key]

    def _mask(self, piece: _Piece, window: int | None) -> Tensor | None:
        unit, segment = piece.unit, piece.segment
        n = segment.stop - segment.start
        above = len(segment.ancestors)
        depths = torch.as_tensor(unit.depths[segment.start : segment.stop], device=self.device)
        ends = torch.as_tensor(unit.ends[segment.start : segment.stop], device=self.device)
        if window is not None and int(depths.max()) < window:
            window = None
        is_chain = bool((ends >= segment.stop).all())
        if self.prefix_length + above == 0 and window is None and is_chain:
            return None
        index = torch.arange(segment.start, segment.stop, device=self.device)
        sees = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])  # (n, n)
        before = torch.ones(n, self.prefix_length + above, dtype=torch.bool, device=self.device)
        sees = torch.cat([before, sees], 1)
        if window is not None:
            higher = torch.as_tensor(unit.depths[segment.ancestors], device=self.device)
            keys = torch.cat([torch.arange(self.prefix_length, device=self.device), higher, depths])
            sees &= depths[:, None] - keys[None, :] < window
        return torch.zeros(sees.shape, dtype=self.dtype, device=self.device).masked_fill_(~sees, float("-inf"))

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) -> (1, tokens, heads, dim)."""
        if self.kept is not None:
            self.kept[id(module)] = (key, value)
        before = self.prefix.layers[id(module)] if self.prefix is not None else None
        result = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        for piece, mask in zip(self.pieces, self.masks(window, query.device), strict=True):
            keys, values = key[:, :, piece.start : piece.stop], value[:, :, piece.start : piece.stop]
            seen_keys = [before[0]] if before is not None else []
            seen_values = [before[1]] if before is not None else []
            if piece.ancestors is not None:
                ancestors = piece.ancestors.to(key.device)
                seen_keys.append(key.index_select(2, ancestors))
                seen_values.append(value.index_select(2, ancestors))
            if seen_keys:
                keys = torch.cat([*seen_keys, keys], 2)
                values = torch.cat([*seen_values, values], 2)
            part = attention(query[:, :, piece.start : piece.stop], keys, values, mask, scaling, softcap)
            result[:, piece.start : piece.stop] = part.transpose(1, 2)
        return result


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """Grouped-query attention; `mask` None means causal.

    Args:
        query: (1, heads, n, dim). key, value: (1, kv_heads, m, dim). mask: (n, m) additive, or None (then n == m).
    Returns:
        (1, heads, n, dim).
    """
    kv_heads, n, m = key.shape[1], query.shape[2], key.shape[2]
    groups = query.shape[1] // kv_heads
    is_small = n <= SMALL and m <= 2 * SMALL and query.device.type == "cpu" and query.dtype == torch.float32
    if softcap is None and not is_small:
        if groups > 1:
            key = repeat_heads(key, groups)
            value = repeat_heads(value, groups)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)
    if mask is None:
        mask = torch.full((n, m), float("-inf"), device=query.device).triu_(1)
    folded = query.reshape(kv_heads, groups * n, query.shape[-1])  # heads of one group under each other
    scores = torch.bmm(folded, key[0].transpose(1, 2)).float().mul_(scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(kv_heads, groups, n, m) + mask
    weights = torch.softmax(scores, -1).to(query.dtype)
    return torch.bmm(weights.view(kv_heads, groups * n, m), value[0]).view(1, -1, n, value.shape[-1])


SMALL = 64
"""Up to this many queries plain matrix products beat the fused kernel on a CPU."""


def repeat_heads(states: Tensor, groups: int) -> Tensor:
    """(1, kv_heads, m, dim) -> (1, kv_heads * groups, m, dim), every head `groups` times in a row."""
    batch, heads, length, dim = states.shape
    return states[:, :, None].expand(batch, heads, groups, length, dim).reshape(batch, heads * groups, length, dim)
