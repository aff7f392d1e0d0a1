"""Packs examples of different lengths into one row, so that no token is padding and no example sees another.

Transformers reads the restarts of the position ids as borders between sequences and masks attention across them, in every
kind of attention layer; `tests` holds it to that for every architecture family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods.calibration.training_text import Example
from models.errors import BadInput


@dataclass(frozen=True)
class Pack:
    """One row of examples.

    Attributes:
        tokens, position_ids: (1, length) int64; positions restart at each example.
        predict_at: (predictions,) int64 positions in the row whose next token is a label.
        targets: (predictions,) int64 these labels.
    """

    tokens: Tensor
    position_ids: Tensor
    predict_at: Tensor
    targets: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Pack:
        starts = [0]
        for example in examples:
            starts.append(starts[-1] + len(example.tokens))
        predict_at, targets = [], []
        for example, start in zip(examples, starts, strict=False):
            labels = example.labels[1:]  # the token at i predicts the one at i + 1
            here = (labels != -100).nonzero().squeeze(1)
            predict_at.append(here + start)
            targets.append(labels[here])
        return cls(
            torch.cat([example.tokens for example in examples])[None],
            torch.cat([torch.arange(len(example.tokens)) for example in examples])[None],
            torch.cat(predict_at),
            torch.cat(targets),
        )

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel()

    def to(self, device: torch.device) -> Pack:
        return Pack(*(tensor.to(device) for tensor in (self.tokens, self.position_ids, self.predict_at, self.targets)))


def label_logits(model: PreTrainedModel, pack: Pack) -> Tensor:
    """(predictions, vocabulary) logits, computed only where a label is."""
    runnable: Any = model
    return runnable(input_ids=pack.tokens, position_ids=pack.position_ids, use_cache=False, logits_to_keep=pack.predict_at).logits[0]


def lm_loss(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Mean cross-entropy of the labels of a pack, float32."""
    pack = pack.to(model.device)
    logits = label_logits(model, pack)
    return torch.nn.functional.cross_entropy(logits.float(), pack.targets.to(logits.device))


def with_prompt(examples: Sequence[Example], prompt: Tensor) -> list[Example]:
    """The examples with prompt tokens in front, which carry no loss."""
    return [Example(torch.cat([prompt, example.tokens]), len(prompt) + example.prompt_tokens) for example in examples]


class PackSampler:
    """Goes through examples in packs, in another order each epoch; its place is two numbers.

    An epoch's order depends on the seed and the epoch alone. Packs are filled in that order until the next example would not
    fit; an example longer than a pack is a pack alone.
    """

    def __init__(self, examples: Sequence[Example], pack_tokens: int, seed: int) -> None:
        if not examples:
            raise BadInput("there is no training text to learn from; give a source with at least two examples.")
        self.examples = examples
        self.pack_tokens = pack_tokens
        self.seed = seed
        self.epoch = 0
        self.index = 0
        self._plan = self._packs_of_epoch(0)

    @property
    def packs_per_epoch(self) -> int:
        """Packs of the first epoch; later ones differ by a few."""
        return len(self._packs_of_epoch(0))

    def next(self) -> Pack:
        if self.index == len(self._plan):
            self.go_to(self.epoch + 1, 0)
        pack = Pack.of([self.examples[i] for i in self._plan[self.index]])
        self.index += 1
        return pack

    def go_to(self, epoch: int, index: int) -> None:
        self.epoch, self.index = epoch, index
        self._plan = self._packs_of_epoch(epoch)

    def _packs_of_epoch(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed + 1_000_003 * epoch) % 2**63)
        packs: list[list[int]] = []
        filled = self.pack_tokens
        for i in torch.randperm(len(self.examples), generator=generator).tolist():
            length = len(self.examples[i].tokens)
            if filled + length > self.pack_tokens:
                packs.append([])
                filled = 0
            packs[-1].append(i)
            filled += length
        return packs
