"""The batches of a recovery: the same examples in the same order for every method, to the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prunebench.methods.data import Example
from prunebench.methods.learning.text.packing import Pack
from prunebench.models.errors import BadInput


@dataclass(frozen=True)
class BatchPlan:
    """Which examples each optimiser step sees.

    Attributes:
        examples: of the training text; steps: their indices, one tuple a step.
        pack_tokens: examples of a step run side by side in rows of at most so many tokens (one longer example: a row alone).
    """

    examples: Sequence[Example]
    steps: tuple[tuple[int, ...], ...]
    pack_tokens: int

    @classmethod
    def of(
        cls, examples: Sequence[Example], *, batch_size: int, epochs: int, token_budget: int | None, pack_tokens: int, seed: int
    ) -> BatchPlan:
        """Goes through all examples in a new random order each epoch, `batch_size` a step.

        A token budget takes the place of `epochs`: it repeats epochs as needed and leaves out the first example that would
        exceed it, and all after it.

        Raises:
            BadInput: the budget is less than one example.
        """
        steps: list[tuple[int, ...]] = []
        spent, epoch = 0, 0
        generator = torch.Generator().manual_seed(seed)
        is_spent = False
        while not is_spent and (token_budget is not None or epoch < epochs):
            order = torch.randperm(len(examples), generator=generator).tolist()
            for start in range(0, len(order), batch_size):
                batch = []
                for i in order[start : start + batch_size]:
                    if token_budget is not None and spent + len(examples[i].tokens) > token_budget:
                        is_spent = True
                        break
                    batch.append(i)
                    spent += len(examples[i].tokens)
                if batch:
                    steps.append(tuple(batch))
                if is_spent:
                    break
            epoch += 1
        if not steps:
            raise BadInput(f"token_budget {token_budget} is less than one training example; give more tokens.")
        return cls(examples, tuple(steps), pack_tokens)

    @property
    def num_tokens(self) -> int:
        return sum(len(self.examples[i].tokens) for step in self.steps for i in step)

    def packs(self, step: int) -> list[Pack]:
        """The rows of one step."""
        return packed([self.examples[i] for i in self.steps[step]], self.pack_tokens)


def packed(examples: Sequence[Example], pack_tokens: int) -> list[Pack]:
    """Rows of at most `pack_tokens` tokens, filled longest example first into the first row with room: nearly no padding."""
    rows: list[list[Example]] = []
    for example in sorted(examples, key=lambda one: -len(one.tokens)):
        room = (row for row in rows if sum(len(one.tokens) for one in row) + len(example.tokens) <= pack_tokens)
        row = next(room, None)
        if row is None:
            rows.append([example])
        else:
            row.append(example)
    return [Pack.of(row) for row in rows]
