"""Wanda: zeroes single weights by magnitude times input norm. An unstructured reference: nothing gets smaller."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.layerwise import InputMoments
from prunebench.methods.pruner import Pruner, Run
from prunebench.methods.registry import register
from prunebench.methods.unstructured import UnstructuredConfig, drop_lowest, drop_two_of_four, zero_fraction, zero_layer_by_layer
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks


@register("wanda")
class Wanda(Pruner[UnstructuredConfig]):
    """S_ij = |W_ij| * ||x_j||, compared within each output row; all projections of all layers, no weight update.

    Source: Wanda, arXiv 2306.11695, eq. 1 and its code (sequential, embeddings and head untouched).
    """

    Config = UnstructuredConfig
    structured = False

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        samples = data.require_calibration("wanda", model)
        anatomy = Anatomy.from_model(model)
        fraction = zero_fraction(anatomy, budget, self.config.pattern)

        def zero(weight: Tensor, inputs: InputMoments) -> Tensor:
            scores = wanda_scores(weight, inputs, len(samples))
            dropped = drop_two_of_four(scores) if self.config.pattern == "2:4" else drop_lowest(scores, fraction)
            return weight.masked_fill(dropped, 0)

        zero_layer_by_layer(model, anatomy, samples, InputMoments, zero, batch_size=self.config.batch_size, run=run)
        return Masks.of(anatomy)


def wanda_scores(weight: Tensor, inputs: InputMoments, num_samples: int) -> Tensor:
    """(out, in) float32: |W_ij| times the root mean square, over samples, of the token norm of input j."""
    return weight.abs() * (inputs.sum_of_squares / num_samples).sqrt().to(weight.device, weight.dtype)
