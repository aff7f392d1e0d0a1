"""Wanda-sp: structured pruning by weight magnitude times input norm, layer after layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.allocation import lowest, unprotected_layers
from prunebench.methods.data import PruningData
from prunebench.methods.layerwise import InputMoments, walk_layers, watched_inputs
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.masks import Masks


class WandaSpConfig(PrunerConfig):
    protect_first: int = Field(0, ge=0, description="layers at the start that stay whole")
    protect_last: int = Field(0, ge=0, description="layers at the end that stay whole")
    batch_size: int = Field(8, ge=1, description="samples that one layer runs on at a time; does not change the result")


@register("wanda_sp")
class WandaSp(Pruner[WandaSpConfig]):
    """Scores each input j of o_proj and down_proj by mean_i |W_ij| * sqrt(sum of x_j^2 over tokens / samples).

    A KV group sums over the inputs of its query heads. The same fraction goes in every layer; inputs of a layer come from the
    layers before it as pruned.
    Source: Wanda-sp, the structured Wanda of FLAP (arXiv 2312.11983) and its code, which divides by samples that it never
    loaded and feeds zeros for them; we take the samples that are there.
    """

    Config = WandaSpConfig

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        samples = data.require_calibration("wanda_sp", model)
        anatomy = Anatomy.from_model(model)
        counts = solve_uniform(anatomy, budget, unprotected_layers(anatomy, self.config.protect_first, self.config.protect_last))
        sizes = [anatomy.layer_sizes(layer.index) for layer in anatomy.layers]
        groups = [torch.ones(size[1], dtype=torch.bool) for size in sizes]
        channels = [torch.ones(size[2], dtype=torch.bool) for size in sizes]

        def visit(index: int, run_layer: Callable[[], Tensor]) -> Tensor:
            if index not in counts:
                return run_layer()
            attention, mlp = anatomy.layers[index].attention, anatomy.layers[index].mlp
            outputs = [part for part in (attention and attention.o, mlp and mlp.down) if part]
            with watched_inputs(model, outputs, InputMoments) as moments:
                run_layer()
            if attention:
                columns = column_scores(model.get_parameter(f"{attention.o}.weight"), moments[attention.o], len(samples))
                groups[index][lowest(columns.view(attention.num_kv_groups, -1).sum(1), counts[index].kv_groups)] = False
            if mlp:
                columns = column_scores(model.get_parameter(f"{mlp.down}.weight"), moments[mlp.down], len(samples))
                channels[index][lowest(columns, counts[index].channels)] = False
            with apply_masks(model, anatomy, Masks.of(anatomy, kv_groups=groups, ffn=channels)):
                return run_layer()

        walk_layers(model, samples, visit, batch_size=self.config.batch_size, progress=run.progress)
        return Masks.of(anatomy, kv_groups=groups, ffn=channels)


def column_scores(weight: Tensor, inputs: InputMoments, num_samples: int) -> Tensor:
    """(in,) float64 on the CPU: mean_i |W_ij| times the root mean square, over samples, of the token norm of input j.

    Args:
        weight: (out, in) of an output projection; inputs: moments of its inputs over all calibration tokens.
    Source: FLAP's code for Wanda-sp; Wanda, arXiv 2306.11695, eq. 1.
    """
    norms = (inputs.sum_of_squares / num_samples).sqrt()
    return (weight.detach().float().abs().mean(0).double() * norms.to(weight.device)).cpu()
