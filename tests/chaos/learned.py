"""A pruner that trains, checkpoints itself at every step, and goes on bit for bit after a kill.

It learns one score for each MLP channel, small enough to be killed a hundred times: a model of what training methods do.
"""

from __future__ import annotations

import os
import time

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget, solve_uniform
from prunebench.models.masks import Masks


class LearnedConfig(PrunerConfig):
    steps: int = Field(20, ge=1, description="optimizer steps")
    pause: float = Field(0.03, ge=0, description="seconds a step takes longer, so that kills fall into it")


@register("learned")
class Learned(Pruner[LearnedConfig]):
    Config = LearnedConfig

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        anatomy = Anatomy.from_model(model)
        scores = torch.zeros(sum(anatomy.layer_sizes(layer.index)[2] for layer in anatomy.layers), requires_grad=True)
        optimizer = torch.optim.Adam([scores], lr=0.1)
        generator = run.generator()
        path = run.folder / "state.safetensors"
        first = self._restore(path, scores, optimizer, generator)
        for step in range(first, self.config.steps):
            row = data.calibration[int(torch.randint(len(data.calibration), (1,), generator=generator))]
            target = torch.randn(len(scores), generator=generator) + row.float().mean().sin()
            optimizer.zero_grad()
            loss = ((scores - target) ** 2).mean()
            loss.backward()
            optimizer.step()
            run.log_metrics(step, {"loss": loss.item()})
            self._save(path, step + 1, scores, optimizer, generator)
            time.sleep(self.config.pause)
            run.progress("training", step + 1, self.config.steps)
        return self._harden(anatomy, budget, scores.detach())

    @staticmethod
    def _save(path, step: int, scores: Tensor, optimizer: torch.optim.Adam, generator: torch.Generator) -> None:  # type: ignore[no-untyped-def]
        state = optimizer.state[scores]
        tensors = {"scores": scores.detach(), "m": state["exp_avg"], "v": state["exp_avg_sq"]}
        tensors |= {"adam_step": state["step"], "step": torch.tensor(step), "rng": generator.get_state()}
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        os.replace(temporary, path)

    @staticmethod
    def _restore(path, scores: Tensor, optimizer: torch.optim.Adam, generator: torch.Generator) -> int:  # type: ignore[no-untyped-def]
        if not path.exists():
            return 0
        tensors = load_file(path)
        with torch.no_grad():
            scores.copy_(tensors["scores"])
        optimizer.state[scores] = {"step": tensors["adam_step"], "exp_avg": tensors["m"], "exp_avg_sq": tensors["v"]}
        generator.set_state(tensors["rng"])
        return int(tensors["step"])

    @staticmethod
    def _harden(anatomy: Anatomy, budget: Budget, scores: Tensor) -> Masks:
        counts = solve_uniform(anatomy, budget)
        kv_groups, ffn, start = [], [], 0
        for layer in anatomy.layers:
            _, groups, channels = anatomy.layer_sizes(layer.index)
            kv_groups.append(torch.arange(groups) >= counts[layer.index].kv_groups)
            part = scores[start : start + channels]
            mask = torch.ones(channels, dtype=torch.bool)
            mask[part.argsort()[: counts[layer.index].channels]] = False
            ffn.append(mask)
            start += channels
        return Masks.of(anatomy, kv_groups=kv_groups, ffn=ffn)
