"""FLAP: prunes the units whose inputs fluctuate least and replaces them by their mean, kept as a bias."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.allocation import UnitScores, allocate
from prunebench.methods.data import PruningData
from prunebench.methods.layerwise import InputMoments, run_decoder, watched_inputs
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks
from prunebench.models.output_bias import ensure_output_bias

Metric = Literal["WIFV", "IFV", "WIFN"]


class FlapConfig(PrunerConfig):
    metric: Metric = Field("WIFV", description="variance times squared column norm, variance alone, or mean |W| times RMS input")
    structure: Literal["AL-AM", "UL-UM"] = Field("AL-AM", description="one global search over all layers and both modules, or uniform")
    compensate: bool = Field(True, description="add the mean output of what goes as a bias of o_proj and down_proj")
    batch_size: int = Field(8, ge=1, description="samples of one forward pass; does not change the result")


@register("flap")
class Flap(Pruner[FlapConfig]):
    """Fluctuation-based adaptive structured pruning: one pass over the dense model, no gradients.

    The biases that compensate are parameters: they are counted, and the search removes as many more.
    Source: FLAP, arXiv 2312.11983, eqs. 4-8, and its code (attention scores are squared before they are standardised).
    Departures: exact moments over tokens, where the code's running mean aliases; the unit is a KV group with its query heads;
    one group and one channel of each layer stay; the budget is met to the nearest channel.
    """

    Config = FlapConfig

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        samples = data.require_calibration("flap", model)
        anatomy = Anatomy.from_model(model)
        outputs = [path for layer in anatomy.layers for path in _outputs(anatomy, layer.index)]
        with watched_inputs(model, outputs, InputMoments) as moments:
            run_decoder(model, samples.split(self.config.batch_size), progress=run.progress, label="statistics")
        scores = flap_scores(model, anatomy, moments, self.config.metric)
        added = sum(anatomy.hidden_size for path in outputs if model.get_submodule(path).bias is None) if self.config.compensate else 0
        masks = allocate(
            anatomy,
            budget,
            scores,
            allocation="global" if self.config.structure == "AL-AM" else "uniform",
            rank_by="score",
            added_params=added,
        )
        if self.config.compensate:
            compensate(model, anatomy, masks, moments)
        return masks


def _outputs(anatomy: Anatomy, index: int) -> list[str]:
    attention, mlp = anatomy.layers[index].attention, anatomy.layers[index].mlp
    return ([attention.o] if attention else []) + ([mlp.down] if mlp else [])


@torch.no_grad()
def flap_scores(model: PreTrainedModel, anatomy: Anatomy, moments: dict[str, InputMoments], metric: Metric) -> UnitScores:
    """Standardised scores of all units: comparable between layers and between heads and channels."""
    groups, channels = [], []
    for layer in anatomy.layers:
        if layer.attention:
            scores = column_metric(model.get_parameter(f"{layer.attention.o}.weight"), moments[layer.attention.o], metric)
            groups.append(standardised(scores.square()).view(layer.attention.num_kv_groups, -1).mean(1))
        else:
            groups.append(torch.zeros(0))
        if layer.mlp:
            channels.append(standardised(column_metric(model.get_parameter(f"{layer.mlp.down}.weight"), moments[layer.mlp.down], metric)))
        else:
            channels.append(torch.zeros(0))
    return UnitScores(tuple(groups), tuple(channels))


def column_metric(weight: Tensor, inputs: InputMoments, metric: Metric) -> Tensor:
    """(in,) float64 on the CPU, larger means keep: how much output j's input carries beyond its mean.

    Args:
        weight: (out, in); inputs: moments of its inputs over all calibration tokens.
    """
    weight = weight.detach().float()
    if metric == "WIFN":
        rms = (inputs.sum_of_squares / max(inputs.tokens, 1)).sqrt()
        return (weight.abs().mean(0).double() * rms.to(weight.device)).cpu()
    variance = inputs.variance.to(weight.device)
    return (variance if metric == "IFV" else variance * weight.square().sum(0).double()).cpu()


def standardised(scores: Tensor) -> Tensor:
    """Scores with mean 0 and standard deviation 1; all zero where they are equal (no input varies)."""
    spread = scores.std() if len(scores) > 1 else scores.new_zeros(())
    return (scores - scores.mean()) / spread if spread > 0 else torch.zeros_like(scores)


@torch.no_grad()
def compensate(model: PreTrainedModel, anatomy: Anatomy, masks: Masks, moments: dict[str, InputMoments]) -> None:
    """Adds W @ (mean input, where it goes) to the bias of every o_proj and down_proj: mean outputs stay as they were."""
    for layer in anatomy.layers:
        kept = {}
        if layer.attention:
            kept[layer.attention.o] = masks.q_heads[layer.index].repeat_interleave(layer.attention.head_dim)
        if layer.mlp:
            kept[layer.mlp.down] = masks.ffn[layer.index]
        for path, mask in kept.items():
            weight = model.get_parameter(f"{path}.weight")
            lost = moments[path].mean.to(weight.device).masked_fill(mask.to(weight.device), 0)  # (in,)
            ensure_output_bias(model, path).add_((weight.double() @ lost).to(weight.dtype))
