"""Channels whose loudest moment on the calibration text is quiet go first; heads go by the size of their output weights."""

import torch
from pydantic import Field

from prunebench.methods.allocation import UnitScores, allocate
from prunebench.methods.pruner import Pruner, PrunerConfig
from prunebench.models.anatomy import Anatomy


class QuietPeakConfig(PrunerConfig):
    batch_size: int = Field(8, ge=1, description="calibration samples in one forward pass")


class QuietPeak(Pruner[QuietPeakConfig]):
    """Scores a unit by the largest absolute value that it hands to its layer's output projection."""

    name = "quiet_peak"
    Config = QuietPeakConfig

    @torch.no_grad()
    def prune(self, model, budget, data, run):
        anatomy = Anatomy.from_model(model)
        peaks = {}

        def listen(module, inputs):  # inputs[0]: (batch, tokens, units)
            now = inputs[0].abs().float().amax((0, 1)).cpu()
            peaks[module] = torch.maximum(peaks[module], now) if module in peaks else now

        outputs = [(model.get_submodule(layer.attention.o), model.get_submodule(layer.mlp.down)) for layer in anatomy.layers]
        hooks = [module.register_forward_pre_hook(listen) for pair in outputs for module in pair]
        batches = list(data.calibration_batches(self.config.batch_size))
        for index, batch in enumerate(batches):
            model(batch.to(run.device))
            run.progress("listening", index + 1, len(batches))
        for hook in hooks:
            hook.remove()
        groups = [layer.attention.num_kv_groups for layer in anatomy.layers]
        heads = tuple(peaks[o].view(n, -1).amax(1) for (o, _), n in zip(outputs, groups, strict=True))
        return allocate(anatomy, budget, UnitScores(heads, tuple(peaks[down] for _, down in outputs)))
