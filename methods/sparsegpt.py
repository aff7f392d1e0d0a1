"""SparseGPT: zeroes single weights and lets the others make up for them. An unstructured reference."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.layerwise import InputGram
from prunebench.methods.pruner import Pruner, Run
from prunebench.methods.registry import register
from prunebench.methods.unstructured import Pattern, UnstructuredConfig, drop_two_of_four, zero_fraction, zero_layer_by_layer
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks


class SparseGPTConfig(UnstructuredConfig):
    block_size: int = Field(128, ge=4, multiple_of=4, description="columns between two updates of all later columns")
    damping: float = Field(0.01, gt=0, description="added to the diagonal of the Hessian, as a share of its mean")


@register("sparsegpt")
class SparseGPT(Pruner[SparseGPTConfig]):
    """Optimal-brain-surgeon pruning of each row with one Hessian a projection, columns in order.

    Source: SparseGPT, arXiv 2301.00774, algorithm 1, and its code.
    """

    Config = SparseGPTConfig
    structured = False

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        samples = data.require_calibration("sparsegpt", model)
        anatomy = Anatomy.from_model(model)
        fraction = zero_fraction(anatomy, budget, self.config.pattern)

        def zero(weight: Tensor, inputs: InputGram) -> Tensor:
            hessian = inputs.gram * (2 / inputs.tokens)
            return sparsegpt(weight, hessian, fraction, self.config.pattern, block_size=self.config.block_size, damping=self.config.damping)

        zero_layer_by_layer(model, anatomy, samples, InputGram, zero, batch_size=self.config.batch_size, run=run)
        return Masks.of(anatomy)


def sparsegpt(weight: Tensor, hessian: Tensor, fraction: float, pattern: Pattern, *, block_size: int, damping: float) -> Tensor:
    """The weight with `fraction` zeros that keeps weight @ x closest, greedily from the first column to the last.

    Args:
        weight: (out, in) float32; hessian: (in, in) float64, mean of 2 x x^T.
    Returns:
        (out, in) float32. Inputs that are always zero lose their weights.
    """
    work, hessian = weight.double(), hessian.clone()
    columns = work.shape[1]
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    work[:, dead] = 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)  # (in, in)
    diagonal = upper.diagonal()
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        errors = torch.zeros_like(work[:, start:end])
        dropped = torch.zeros_like(errors, dtype=torch.bool)
        if pattern == "unstructured":  # the lowest of the whole block, all rows together
            saliency = (work[:, start:end] / diagonal[start:end]).square().flatten()
            dropped.view(-1)[torch.argsort(saliency, stable=True)[: round(fraction * len(saliency))]] = True
        for column in range(start, end):
            if pattern == "2:4" and (column - start) % 4 == 0:
                four = slice(column, min(column + 4, end))
                dropped[:, column - start : four.stop - start] = drop_two_of_four((work[:, four] / diagonal[four]).square())
            kept = work[:, column].masked_fill(dropped[:, column - start], 0)
            error = (work[:, column] - kept) / diagonal[column]  # (out,)
            work[:, column:end] -= error[:, None] * upper[column, column:end]
            work[:, column] = kept
            errors[:, column - start] = error
        work[:, end:] -= errors @ upper[start:end, end:]
    return work.float()
