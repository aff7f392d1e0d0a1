"""Biases on output projections: the one tensor that a pruner may add to a model.

FLAP makes up for removed inputs by a constant (arXiv 2312.11983, eq. 8). Llama-kind output projections have no bias;
`ensure_output_bias` gives one to a single projection, and slicing and checkpoints carry it (`models.modeling_pruned`).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.models.anatomy import Anatomy


def output_bias_names(anatomy: Anatomy) -> frozenset[str]:
    """Names that biases of output projections have, or would have, in the state dict."""
    outputs = [layer.attention.o for layer in anatomy.layers if layer.attention]
    outputs += [layer.mlp.down for layer in anatomy.layers if layer.mlp]
    return frozenset(f"{path}.bias" for path in outputs)


def ensure_output_bias(model: PreTrainedModel, path: str) -> nn.Parameter:
    """The bias of the output projection at `path`, (hidden_size,); made of zeros if there was none."""
    projection = cast(nn.Linear, model.get_submodule(path))
    if projection.bias is None:
        projection.bias = nn.Parameter(projection.weight.new_zeros(projection.out_features), projection.weight.requires_grad)
    return projection.bias


@torch.no_grad()
def load_changed_weights(model: PreTrainedModel, anatomy: Anatomy, tensors: dict[str, Tensor]) -> None:
    """Copies weights that a pruner changed, and output biases that it added, into a fresh copy of the model.

    Raises:
        KeyError: a name that fits no tensor of the model.
    """
    for name in tensors.keys() & output_bias_names(anatomy):
        ensure_output_bias(model, name.removesuffix(".bias"))
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
