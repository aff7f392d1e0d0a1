"""Where the prunable parts of a decoder are, read from the modules that are there.

A decoder layer is `x + attention(norm(x))` followed by `x + mlp(norm(x))`, with the norms before, after or on both
sides of a sub-layer. Nothing here knows a model by its name; a model with a part that can't be accounted for is refused
with the name of that part, since a part that is not understood can't be pruned or counted honestly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rows:
    """Rows of one projection: rows [start, start + count) of the weight `parameter` (and of its bias)."""

    module: str
    start: int
    count: int


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    Attributes:
        q, k, v: rows of the projection that holds them; the same module where they are fused (Phi-3).
        o: path of the output projection, whose columns are ordered as the rows of q.
        num_kv_groups: number of key/value heads.
        q_heads_per_group: query heads that read each key/value head; query head i belongs to group
            i // q_heads_per_group (transformers' `repeat_kv` order).
        qk_norms: paths of norms on queries and keys, if any.
        qk_norm_spans_heads: these norms run over all heads together (OLMo 2), not over each head (Qwen 3, Gemma 3).
        norms: paths of the norms on the residual width that serve this sub-layer.
    """

    path: str
    q: Rows
    k: Rows
    v: Rows
    o: str
    head_dim: int
    num_kv_groups: int
    q_heads_per_group: int
    in_bias: bool
    out_bias: bool
    qk_norms: tuple[str, ...]
    qk_norm_spans_heads: bool
    norms: tuple[str, ...]

    @property
    def num_q_heads(self) -> int:
        return self.num_kv_groups * self.q_heads_per_group


@dataclass(frozen=True)
class MLP:
    """One layer's gated MLP; `gate` and `up` share a module where they are fused (Phi-3)."""

    path: str
    gate: Rows
    up: Rows
    down: str
    width: int
    in_bias: bool
    out_bias: bool
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One decoder layer; `attention` or `mlp` is None where an earlier pruning removed it."""

    index: int
    path: str
    attention: Attention | None
    mlp: MLP | None


@dataclass(frozen=True)
class ParamCount:
    """Parameters of a model.

    Attributes:
        total: every parameter once; tied embeddings count once.
        blocks: weights and biases of the projections inside the decoder layers (no norms, embeddings or head), the
            count of "6.48B" for LLaMA-7B that Compresso, NutePrune and FLAP prune against.
    """

    total: int
    blocks: int

    def of(self, basis: Literal["total", "blocks"]) -> int:
        return self.total if basis == "total" else self.blocks


@dataclass(frozen=True)
class Anatomy:
    """The prunable structure of one decoder-only language model. Build it with `Anatomy.from_model`."""

    model_type: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    decoder: str
    embedding: str
    head: str
    final_norm: str
    is_tied: bool
    head_bias: bool
    norm_offset: float = field(metadata={"doc": "a norm multiplies by (offset + weight): 0 in Llama, 1 in Gemma"})

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> Anatomy:
        """Reads the anatomy from the modules of `model`, which may be on the meta device or already pruned.

        Raises:
            UnsupportedModel: a module is missing or a parameter is left over; the message names it.
        """
        from prunebench.models.anatomy_reader import read_anatomy

        return read_anatomy(model)

    # --- sizes -------------------------------------------------------------------------------------------------

    def attention_params(self, layer: int, q_heads: int, kv_groups: int, hidden: int) -> ParamCount:
        """Parameters of one layer's attention with its norms when that much of it stays (all zero without heads)."""
        part = self.layers[layer].attention
        if part is None or kv_groups == 0:
            return ParamCount(0, 0)
        rows = (q_heads + 2 * kv_groups) * part.head_dim
        blocks = rows * (hidden + part.in_bias) + q_heads * part.head_dim * hidden + part.out_bias * hidden
        qk_norm = 0
        if part.qk_norms:
            qk_norm = (q_heads + kv_groups if part.qk_norm_spans_heads else 2) * part.head_dim
        return ParamCount(blocks + qk_norm + len(part.norms) * hidden, blocks)

    def mlp_params(self, layer: int, channels: int, hidden: int) -> ParamCount:
        """Parameters of one layer's MLP with its norms when that much of it stays (all zero without channels)."""
        part = self.layers[layer].mlp
        if part is None or channels == 0:
            return ParamCount(0, 0)
        blocks = channels * (2 * (hidden + part.in_bias) + hidden) + part.out_bias * hidden
        return ParamCount(blocks + len(part.norms) * hidden, blocks)

    def outer_params(self, hidden: int) -> int:
        """Embedding, final norm and head at the given width of the residual stream."""
        head = 0 if self.is_tied else self.vocab_size * hidden
        return self.vocab_size * hidden + head + self.head_bias * self.vocab_size + hidden

    def kv_group_params(self, layer: int) -> int:
        """Block parameters that leave with one KV group: its k, v rows, its query heads and their o columns."""
        part = self.layers[layer].attention
        if part is None:
            return 0
        per_group = part.q_heads_per_group
        return part.head_dim * ((2 + per_group) * (self.hidden_size + part.in_bias) + per_group * self.hidden_size)

    def q_head_params(self, layer: int) -> int:
        """Block parameters that leave with one query head: its q rows and o columns."""
        part = self.layers[layer].attention
        return 0 if part is None else part.head_dim * (2 * self.hidden_size + part.in_bias)

    def channel_params(self, layer: int) -> int:
        """Block parameters that leave with one MLP channel: its gate and up rows and its down column."""
        part = self.layers[layer].mlp
        return 0 if part is None else 3 * self.hidden_size + 2 * part.in_bias

    @property
    def dense_params(self) -> ParamCount:
        """Parameters of the model as it is."""
        total, blocks = self.outer_params(self.hidden_size), 0
        for layer in self.layers:
            heads, groups, channels = self.layer_sizes(layer.index)
            for count in (
                self.attention_params(layer.index, heads, groups, self.hidden_size),
                self.mlp_params(layer.index, channels, self.hidden_size),
            ):
                total, blocks = total + count.total, blocks + count.blocks
        return ParamCount(total, blocks)

    def layer_sizes(self, layer: int) -> tuple[int, int, int]:
        """(query heads, KV groups, MLP channels) of one layer; zeros for a sub-layer that is absent."""
        attention, mlp = self.layers[layer].attention, self.layers[layer].mlp
        heads = (attention.num_q_heads, attention.num_kv_groups) if attention else (0, 0)
        return (*heads, mlp.width if mlp else 0)


def count_params(model: nn.Module) -> ParamCount:
    """Counts the parameters of a model from its tensors, not from formulas (works on the meta device).

    Returns:
        total: every distinct parameter; blocks: weights and biases of `nn.Linear` modules outside the output head.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    total = sum(parameter.numel() for parameter in model.parameters())
    blocks = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
        for parameter in module.parameters(recurse=False)
    )
    return ParamCount(total, blocks)
