"""Tiny random models of every architecture family that the anatomy is checked on, built in code, with no download.

They carry logic tests and the conformance kit that plugins run; each is made in milliseconds.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from prunebench.models.anatomy import Anatomy
from prunebench.models.masks import Masks

VOCAB_SIZE = 128
NUM_LAYERS = 3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

# family -> (stock model class, its config class, what differs from _COMMON)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    "llama_bias": ("LlamaForCausalLM", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama_mqa": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 1}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 8, "head_dim": 8}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {}),
}


def tiny_model(family: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of `family` (a key of FAMILIES) in float32 and eval mode; the same for the same seed.

    Norm weights and biases are random too, since ones and zeros would hide a mistake in how they are cut.
    """
    model_class, config_class, differences = FAMILIES[family]
    config = getattr(transformers, config_class)(**(_COMMON | differences | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
        randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Draws every weight anew from torch's generator: matrices around zero, vectors (norms, biases) around what they are."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
        else:
            parameter.normal_(std=0.15)


def random_tokens(batch: int = 2, length: int = 24, *, seed: int = 0) -> torch.Tensor:
    """(batch, length) token ids for tiny models, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (batch, length), generator=generator)


def random_masks(
    anatomy: Anatomy,
    *,
    seed: int = 0,
    heads: bool = True,
    channels: bool = True,
    hidden: bool = False,
    sublayers: bool = False,
) -> Masks:
    """Valid masks with about a third of the chosen kinds of units removed at random, different in every layer.

    Args:
        heads: remove KV groups, and single query heads (the same number in every kept group of a layer).
        sublayers: one layer loses its attention and another one its MLP; with an even seed, it is the first layer's
            attention, where the length of the cache is read.
    """
    generator = torch.Generator().manual_seed(seed)

    def keep_some(count: int, kept: int) -> torch.Tensor:
        mask = torch.zeros(count, dtype=torch.bool)
        mask[torch.randperm(count, generator=generator)[:kept]] = True
        return mask

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    num_layers = len(anatomy.layers)
    groups, queries, ffn = [], [], []
    for layer in anatomy.layers:
        _, num_groups, width = anatomy.layer_sizes(layer.index)
        per_group = layer.attention.q_heads_per_group if layer.attention else 1
        kept_queries = draw(1, per_group) if heads else per_group
        groups.append(keep_some(num_groups, draw(1, num_groups) if heads and num_groups else num_groups))
        in_groups = [keep_some(per_group, kept_queries) for _ in range(num_groups)]
        queries.append(torch.cat(in_groups) if in_groups else torch.ones(0, dtype=torch.bool))
        ffn.append(keep_some(width, draw(width // 2, width) if channels and width else width))
    attn, mlp = torch.ones(num_layers, dtype=torch.bool), torch.ones(num_layers, dtype=torch.bool)
    if sublayers:
        first = 0 if seed % 2 == 0 else num_layers - 1
        attn[first], mlp[(first + 1) % num_layers] = False, False
    residual = keep_some(anatomy.hidden_size, 2 * anatomy.hidden_size // 3) if hidden else None
    return Masks.of(anatomy, kv_groups=groups, q_heads=queries, ffn=ffn, hidden=residual, attn=attn, mlp=mlp)
