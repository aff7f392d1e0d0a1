"""SliceGPT, which the anatomy can't express: it says so."""

from __future__ import annotations

from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Pruner, PrunerConfig, Run, Support
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.errors import UnsupportedModel
from prunebench.models.masks import Masks

REASON = (
    "SliceGPT rotates the residual stream anew in each layer and puts two shortcut matrices into every layer, which a plain "
    "transformers checkpoint can't hold and which take back much of what slicing saves; for residual width use "
    "llm_pruner with strategy 'channel'."
)


@register("slicegpt")
class SliceGPT(Pruner[PrunerConfig]):
    """Known by name, so that a grid that lists it gets a row with the reason (SliceGPT, arXiv 2401.15024).

    One rotation for the whole stream would need no shortcuts, but that is another method: the shortcuts are what makes
    the cut of each layer cheap, and at s = 0.25 they cost 2 D'^2 parameters a layer.
    """

    Config = PrunerConfig

    def supports(self, anatomy: Anatomy) -> Support:
        return Support.no(REASON)

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        raise UnsupportedModel(REASON)
