"""This module puts LoRA adapters on a frozen model, through peft, with a seeded start that leaves the global random state alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.models.anatomy import Anatomy

Projection = Literal["q", "k", "v", "o", "gate", "up", "down"]
ADAPTER = "prunebench"


class Adapters:
    """Puts LoRA on chosen projections of every layer; the base weights are frozen while it is attached.

    Read the anatomy before attaching. Hooks on the same module paths keep working. Where projections are fused (Phi-3), an
    adapter on one part is an adapter on the whole.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        *,
        rank: int,
        alpha: float,
        projections: Sequence[Projection],
        generator: torch.Generator,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=projection_paths(anatomy, projections))  # type: ignore[arg-type]  # alpha may be a fraction
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._wrapper: Any = get_peft_model(model, config, adapter_name=ADAPTER)
        model.eval()
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora_" in name
        }
        with torch.no_grad():
            for name in sorted(self.parameters):
                if ".lora_A." in name:  # Kaiming-uniform with a = sqrt(5); B starts at 0
                    parameter = self.parameters[name]
                    start = torch.rand(parameter.shape, generator=generator) * 2 - 1
                    parameter.copy_(start / parameter.shape[1] ** 0.5)

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    def switched_off(self) -> Any:
        """Returns a context in which the model is the base model."""
        return self._wrapper.disable_adapter()

    def tensors(self) -> dict[str, Tensor]:
        """Returns the adapters' own tensors, by module path."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def merge(self) -> None:
        """Adds the adapters to the weights and takes them away; the model is a plain one again."""
        self._take_away(self._wrapper.merge_and_unload)

    def detach(self) -> None:
        """Takes the adapters away without adding them."""
        self._take_away(self._wrapper.unload)

    def _take_away(self, unload: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        model.eval()


def projection_paths(anatomy: Anatomy, projections: Sequence[Projection]) -> list[str]:
    """Lists the paths of the modules that hold these projections, over all layers, without duplicates."""
    paths = []
    for layer in anatomy.layers:
        part, mlp = layer.attention, layer.mlp
        if part:
            found = {"q": part.q.module, "k": part.k.module, "v": part.v.module, "o": part.o}
            paths += [path for name, path in found.items() if name in projections]
        if mlp:
            found = {"gate": mlp.gate.module, "up": mlp.up.module, "down": mlp.down}
            paths += [path for name, path in found.items() if name in projections]
    return list(dict.fromkeys(paths))
