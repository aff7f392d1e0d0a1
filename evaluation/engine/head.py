"""Log-probabilities of target tokens from hidden states, a slice of the vocabulary at a time.

The whole logit matrix is never made: at 50 thousand tokens it is larger than the model's activations, and writing it
takes longer than computing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_SLICE = 4096
"""Vocabulary entries at a time: a slice of logits for a row stays in the caches."""

GPU_SLICE = 65536


@dataclass
class Head:
    """The output projection of a causal LM, where it is a plain linear map with an optional soft cap."""

    weight: Tensor  # (vocabulary, hidden)
    bias: Tensor | None
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head | None:
        """None where the projection is something else (quantised, adapted, off-loaded)."""
        projection = model.get_output_embeddings()
        if type(projection) is not nn.Linear or projection.weight.is_meta or hasattr(projection, "_hf_hook"):
            return None
        return cls(projection.weight, projection.bias, getattr(model.config, "final_logit_softcapping", None))

    def logits(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """(positions, stop - start) float32 logits of a slice of the vocabulary."""
        bias = self.bias[start:stop] if self.bias is not None else None
        logits = F.linear(hidden, self.weight[start:stop], bias)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def score(self, hidden: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and whether it is the arg-max (the first one where several are equal).

        Args:
            hidden: (positions, hidden). rows, targets: (k,) position and token of each score.
        Returns:
            (k,) float64 natural logarithms, (k,) bool.
        """
        hidden = hidden.to(self.weight.device)
        rows, targets = rows.to(hidden.device), targets.to(hidden.device)
        vocabulary = self.weight.shape[0]
        width = CPU_SLICE if hidden.device.type == "cpu" else GPU_SLICE
        order = torch.argsort(targets)
        ordered = targets[order]
        edges = [*range(0, vocabulary, width), vocabulary]
        cuts = torch.searchsorted(ordered, torch.tensor(edges, device=ordered.device)).tolist()
        count = hidden.shape[0]
        highest = hidden.new_full((count,), float("-inf"), dtype=torch.float32)
        total = hidden.new_zeros((count,), dtype=torch.float64)
        winner = torch.zeros(count, dtype=torch.long, device=hidden.device)  # slice that holds the highest logit
        chosen = hidden.new_zeros((len(targets),), dtype=torch.float32)
        is_first = torch.zeros(len(targets), dtype=torch.bool, device=hidden.device)
        for place, (start, stop) in enumerate(pairwise(edges)):
            logits = self.logits(hidden, start, stop)
            top = logits.amax(-1)
            winner = torch.where(top > highest, place, winner)
            here = order[cuts[place] : cuts[place + 1]]
            if len(here):
                found = logits[rows[here], targets[here] - start]
                chosen[here] = found
                candidates = here[found == top[rows[here]]]
                if len(candidates):
                    is_first[candidates] = logits[rows[candidates]].argmax(-1) == targets[candidates] - start
            before, highest = highest, torch.maximum(highest, top)
            total = total * (before - highest).exp_() + logits.sub_(highest[:, None]).exp_().sum(-1)
        log_probs = chosen.double() - highest[rows].double() - total[rows].log()
        slices = torch.bucketize(targets, torch.tensor(edges[1:-1], device=targets.device), right=True)
        greedy = is_first & (chosen == highest[rows]) & (winner[rows] == slices)
        return log_probs, greedy
