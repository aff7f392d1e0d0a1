"""This module holds the learnable gates of one model: one log-alpha vector for each kind of unit, split into layers when read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.methods.learning.gates.expected_size import OpenProbabilities
from prunebench.methods.learning.gates.hard_concrete import (
    INITIAL_DROP_RATE,
    HardConcrete,
    bernoulli_entropy,
    clamp_log_alpha,
    initial_log_alpha,
)
from prunebench.models.anatomy import Anatomy
from prunebench.models.gating.soft_masks import Gates

HEAD_KINDS = ("kv_groups", "q_heads")


@dataclass(frozen=True)
class GateKinds:
    """Says which units of a model get gates.

    Attributes:
        layers: indices of the decoder layers that have gates; None for all. The others stay whole.
    """

    heads: bool = True
    q_heads: bool = False
    ffn: bool = True
    hidden: bool = True
    layers: tuple[int, ...] | None = None


class GateSet:
    """Holds hard-concrete gates on KV groups, query heads, MLP channels and the residual width.

    Attributes:
        log_alpha: kind -> (gates of that kind in all layers,) float32 parameter, in the order of `Gates`' fields.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        kinds: GateKinds,
        generator: torch.Generator,
        *,
        distribution: HardConcrete | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.distribution = distribution or HardConcrete()
        chosen = set(range(len(anatomy.layers)) if kinds.layers is None else kinds.layers)
        sizes = [anatomy.layer_sizes(i) if i in chosen else (0, 0, 0) for i in range(len(anatomy.layers))]
        self._sizes = {
            "kv_groups": [g for _, g, _ in sizes] if kinds.heads else [],
            "q_heads": [h for h, _, _ in sizes] if kinds.q_heads else [],
            "ffn": [c for _, _, c in sizes] if kinds.ffn else [],
        }
        self.log_alpha: dict[str, nn.Parameter] = {}
        for kind, counts in (*self._sizes.items(), ("hidden", [anatomy.hidden_size] if kinds.hidden else [])):
            if sum(counts):
                start = initial_log_alpha(sum(counts), generator, drop_rate=INITIAL_DROP_RATE if kind == "ffn" else None)
                self.log_alpha[kind] = nn.Parameter(start.to(device))

    @property
    def num_gates(self) -> int:
        return sum(parameter.numel() for parameter in self.log_alpha.values())

    def sample(self, generator: torch.Generator, parts: int | None = None) -> dict[str, Tensor]:
        """Draws every gate once, by kind; with `parts`, so many times each, (parts, gates of that kind)."""
        draws = () if parts is None else (parts,)
        return {kind: self.distribution.sample(p.expand(*draws, len(p)), generator) for kind, p in self.log_alpha.items()}

    def probabilities(self) -> dict[str, Tensor]:
        """Returns the chance of every gate to be open, by kind, with gradients."""
        return {kind: self.distribution.nonzero_probability(parameter) for kind, parameter in self.log_alpha.items()}

    def open_probabilities(self, shift: float = 0.0) -> OpenProbabilities:
        """Returns the chances to be open in layers, with `shift` added to every log-alpha first."""
        return self.as_open({kind: self.distribution.nonzero_probability(p + shift) for kind, p in self.log_alpha.items()})

    def as_open(self, values: dict[str, Tensor]) -> OpenProbabilities:
        """Splits chances to be open, by kind, into layers."""
        return OpenProbabilities(
            self.split("kv_groups", values), self.split("q_heads", values), self.split("ffn", values), values.get("hidden")
        )

    def as_gates(self, values: dict[str, Tensor], into: Gates, parts: tuple[int, ...] | None = None) -> None:
        """Hands values, by kind, to gates that already act on a model; with `parts` they have a row for each."""
        into.parts = parts
        into.kv_groups = self.split("kv_groups", values)  # type: ignore[assignment]  # None: a layer without gates
        into.q_heads = self.split("q_heads", values)  # type: ignore[assignment]
        into.ffn = self.split("ffn", values)  # type: ignore[assignment]
        into.hidden = values.get("hidden")

    def split(self, kind: str, values: dict[str, Tensor]) -> tuple[Tensor | None, ...] | None:
        """Splits the values of one kind into a tensor for each layer; None for a layer without gates, None alone for a kind without."""
        if kind not in values:
            return None
        layers: Sequence[Tensor] = values[kind].split(self._sizes[kind], dim=-1)
        return tuple(layer if layer.shape[-1] else None for layer in layers)

    def sparsity_of_vectors(self, probabilities: dict[str, Tensor]) -> Tensor:
        """Returns (vectors,): the expected fraction that goes of each layer's KV groups and of each layer's channels."""
        vectors = [part for kind in ("kv_groups", "ffn") for part in self.split(kind, probabilities) or () if part is not None]
        return torch.stack([1 - part.mean() for part in vectors])

    @property
    def num_vectors(self) -> int:
        return sum(count > 0 for kind in ("kv_groups", "ffn") for count in self._sizes[kind])

    def clamp(self) -> None:
        for parameter in self.log_alpha.values():
            clamp_log_alpha(parameter)

    def entropy(self, probabilities: dict[str, Tensor]) -> float:
        """Returns the mean entropy of all gates, in nats; it falls to 0 as they decide (a clamped gate keeps 0.014 to 0.19)."""
        return float(bernoulli_entropy(torch.cat([p.detach().flatten() for p in probabilities.values()])))
