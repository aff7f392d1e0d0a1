"""Modelling code of a pruned checkpoint: a stock transformers causal LM with uneven layers.

This file is copied next to the weights as `modeling_pruned.py`, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where prunebench is not installed.
It therefore imports nothing but torch and transformers.

`PrunedXForCausalLM` is made on demand for any stock `XForCausalLM`. It builds every decoder layer from
`config.per_layer_config[i]` (transformers' own heterogeneous config: `num_attention_heads`, `num_key_value_heads`,
`intermediate_size`, `skip`) and reads what that can't say from `config.pruning`:

    dense_hidden_size     width of the residual stream before pruning
    dense_heads           [query heads, key/value heads] of each layer before pruning
    output_biases         {"o_proj": [layers], "down_proj": [layers]}: output projections with a bias that the stock
                          model lacks
    qk_norm_spans_heads   the norms on queries and keys run over all heads together (OLMo 2)

A normalisation over w kept of W dense entries divides by w, where the masked model divides by W. With
weight' = weight * sqrt(W / w), done when slicing, and eps' = eps * W / w, done here, both are equal, since
rsqrt(S / w + eps * W / w) = sqrt(w / W) * rsqrt(S / W + eps).
"""

import transformers
from torch import nn

SUBLAYERS = {"self_attn": "o_proj", "mlp": "down_proj"}
_classes: dict = {}


class AbsentAttention(nn.Module):
    """Stands where a layer's attention was removed; adds nothing to the residual stream."""

    is_pruned_away = True

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:  # the cache counts tokens per layer: keep this layer's count right
            marker = hidden_states[:, None, :, :1]  # (batch, 1, tokens, 1)
            past_key_values.update(marker, marker, self.layer_idx)
        return hidden_states.new_zeros(hidden_states.shape), None


class AbsentMLP(nn.Module):
    """Stands where a layer's MLP was removed; adds nothing to the residual stream."""

    is_pruned_away = True

    def forward(self, hidden_states):
        return hidden_states.new_zeros(hidden_states.shape)


def sublayer_norms(layer):
    """Names of the norms on the residual width, by the sub-layer that they serve.

    Returns:
        {"self_attn": [names], "mlp": [names]}. `post_attention_layernorm` comes before the MLP in Llama and its kin,
        and after the attention where the layer has feed-forward norms of its own (Gemma 2 and 3, OLMo 2).
    """
    names = [name for name, child in layer.named_children() if "norm" in name]
    has_feedforward_norm = any("feedforward" in name for name in names)
    serves = {"self_attn": [], "mlp": []}
    for name in names:
        after_attention = "post_attention" in name
        is_mlp = "feedforward" in name or "mlp" in name or (after_attention and not has_feedforward_norm)
        serves["mlp" if is_mlp else "self_attn"].append(name)
    return serves


def _scale_eps(norm, factor):
    name = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
    setattr(norm, name, getattr(norm, name) * factor)


def _layer_config(config, index):
    """The layer's own config, which follows the model's choice of attention implementation."""
    layer_config = config.per_layer_config[index]
    if layer_config is config:
        return config
    base = type(layer_config)
    follower = _classes.get(("layer", base))
    if follower is None:

        def read(self):
            return self.__dict__["model_config"]._attn_implementation_internal

        def write(self, value):
            pass

        follower = type(f"{base.__name__}Layer", (base,), {"_attn_implementation_internal": property(read, write)})
        _classes["layer", base] = follower
    layer_config.__dict__["model_config"] = config
    layer_config.__class__ = follower
    return layer_config


class _PrunedModel:
    """Mixin before a stock `XForCausalLM`: replaces its decoder layers and norm settings."""

    def __init__(self, config, *args, **kwargs):
        spec = config.__dict__.pop("_heterogeneity_spec", None)
        num_layers = config.num_hidden_layers
        config.num_hidden_layers = 1  # one stock layer tells the layer class; the real ones are built in post_init
        self._pruned_layers = (spec, num_layers)
        super().__init__(config, *args, **kwargs)

    def post_init(self):
        spec, num_layers = self.__dict__.pop("_pruned_layers")
        config = self.config
        config.num_hidden_layers = num_layers
        if spec is not None:
            config.__dict__["_heterogeneity_spec"] = spec
        decoder = self.get_decoder()
        layer_class = type(decoder.layers[0])
        decoder.layers = nn.ModuleList(_pruned_layer(layer_class, config, i) for i in range(num_layers))
        dense_hidden_size = config.pruning["dense_hidden_size"]
        if dense_hidden_size != config.hidden_size:
            _scale_eps(decoder.norm, dense_hidden_size / config.hidden_size)
            embedding = self.get_input_embeddings()
            if hasattr(embedding, "scalar_embed_scale"):  # Gemma multiplies embeddings by sqrt(hidden_size)
                embedding.scalar_embed_scale = dense_hidden_size**0.5
                embedding.embed_scale.fill_(embedding.scalar_embed_scale)
        super().post_init()


def _pruned_layer(layer_class, config, index):
    layer_config = _layer_config(config, index)
    layer = layer_class(layer_config, index)
    skip = getattr(layer_config, "skip", None) or []
    norms = sublayer_norms(layer)
    for sublayer, output in SUBLAYERS.items():
        if sublayer in skip:
            absent = AbsentAttention(index) if sublayer == "self_attn" else AbsentMLP()
            setattr(layer, sublayer, absent)
            for name in norms[sublayer]:
                setattr(layer, name, nn.Identity())
            continue
        if index in config.pruning["output_biases"][output]:
            projection = getattr(getattr(layer, sublayer), output)
            projection.bias = nn.Parameter(projection.weight.new_zeros(projection.out_features))
        for name in norms[sublayer]:
            _scale_eps(getattr(layer, name), config.pruning["dense_hidden_size"] / config.hidden_size)
    if "self_attn" not in skip and config.pruning["qk_norm_spans_heads"]:
        dense_q, dense_kv = config.pruning["dense_heads"][index]
        _scale_eps(layer.self_attn.q_norm, dense_q / layer_config.num_attention_heads)
        _scale_eps(layer.self_attn.k_norm, dense_kv / layer_config.num_key_value_heads)
    return layer


def _validate(self):
    """The stock checks without those that read the head count of the whole model or want it to divide the width."""
    for validator in getattr(self, "__class_validators__", ()):
        if validator.__name__ not in ("validate_architecture", "validate_rope"):
            validator(self)


def _validate_architecture(self):
    """Called by transformers itself for each layer's config; a pruned layer has its own head_dim, so any count is fine."""


def pruned_config_class(base):
    """`PrunedXConfig` for a stock `XConfig`; one class for each base."""
    if base not in _classes:
        body = {"validate": _validate, "validate_architecture": _validate_architecture, "__module__": __name__}
        _classes[base] = type(f"Pruned{base.__name__}", (base,), body)
    return _classes[base]


def pruned_model_class(base):
    """`PrunedXForCausalLM` for a stock `XForCausalLM`; one class for each base."""
    if base not in _classes:
        config_class = pruned_config_class(base.config_class)
        body = {"config_class": config_class, "__module__": __name__, "__annotations__": {"config": config_class}}
        # transformers decides by reading the source of the class's module, which is the stock model's here
        body["_can_set_attn_implementation"] = staticmethod(base._can_set_attn_implementation)
        _classes[base] = type(f"Pruned{base.__name__}", (_PrunedModel, base), body)
    return _classes[base]


def __getattr__(name):
    """Resolves `PrunedXConfig` and `PrunedXForCausalLM`, which transformers asks for by name."""
    base = getattr(transformers, name.removeprefix("Pruned"), None) if name.startswith("Pruned") else None
    if not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_config_class(base) if issubclass(base, transformers.PreTrainedConfig) else pruned_model_class(base)
