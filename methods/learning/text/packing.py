"""Packs examples of different lengths into one row, so that no token is padding and no example sees another.

Where attention can be split (`packed_attention`), it runs on each example alone. Elsewhere transformers reads the restarts of
the position ids as borders between sequences and masks attention across them; `tests` holds both to that for every family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data.training_text import Example
from prunebench.methods.learning.text.cross_entropy import NO_TARGET, cross_entropy
from prunebench.methods.learning.text.packed_attention import Layout, packed_attention
from prunebench.models.errors import BadInput

ROUND = 64


@dataclass(frozen=True)
class Pack:
    """One row of examples.

    Attributes:
        tokens, position_ids: (1, length) int64; positions restart at each example, or at the end of the shared prefix.
        predict_at: (predictions,) int64 positions in the row whose next token is a label.
        targets: (predictions,) int64 these labels.
        layout: where the examples lie in the row, and how long the prefix is that they share.
        tail: tokens at the end that stand for nothing, see `rounded`; they are a last part of the layout.
    """

    tokens: Tensor
    position_ids: Tensor
    predict_at: Tensor
    targets: Tensor
    layout: Layout
    tail: int = 0

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
            Layout(tuple(len(example.tokens) for example in examples)),
        )

    @classmethod
    def after(cls, prefix: Tensor, examples: Sequence[Example]) -> Pack:
        """The examples, each as if it alone came after `prefix`, which is in the row only once and carries no loss."""
        length = len(prefix)
        rest = cls.of([Example(torch.cat([prefix[-1:], e.tokens]), e.prompt_tokens + 1) for e in examples])
        keep = (rest.position_ids[0] > 0).nonzero().squeeze(1)  # all but the stand-ins for the prefix's last token
        moved = torch.full((rest.num_tokens,), length - 1)
        moved[keep] = torch.arange(len(keep)) + length
        return cls(
            torch.cat([prefix, rest.tokens[0, keep]])[None],
            torch.cat([torch.arange(length), rest.position_ids[0, keep] + length - 1])[None],
            moved[rest.predict_at],
            rest.targets,
            Layout(tuple(len(example.tokens) for example in examples), length),
        )

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel() - self.tail

    @property
    def num_sequences(self) -> int:
        return len(self.layout.lengths) - bool(self.tail)

    def rounded(self) -> Pack:
        """The same pack, with tokens that no example sees and predictions without target, to a multiple of ROUND of each."""
        tail, more = -self.tokens.numel() % ROUND, -len(self.targets) % ROUND
        if tail == more == 0:
            return self
        new = self.tokens.new_zeros
        return Pack(
            torch.cat([self.tokens, new(1, tail)], 1),
            torch.cat([self.position_ids, torch.arange(tail, device=self.tokens.device)[None]], 1),
            torch.cat([self.predict_at, new(more)]),
            torch.cat([self.targets, new(more) + NO_TARGET]),
            Layout((*self.layout.lengths, tail), self.layout.prefix) if tail else self.layout,
            tail,
        )

    def to(self, device: torch.device) -> Pack:
        """On another device; rounded where matrix products in bfloat16 on a CPU would keep a kernel for every length they met."""
        tokens, position_ids, predict_at, targets = (
            tensor.to(device) for tensor in (self.tokens, self.position_ids, self.predict_at, self.targets)
        )
        moved = Pack(tokens, position_ids, predict_at, targets, self.layout, self.tail)
        return moved.rounded() if device.type == "cpu" and torch.is_autocast_enabled("cpu") else moved


def run_packed(model: PreTrainedModel, pack: Pack, call: Callable[[dict[str, Any]], Any]) -> Tensor:
    """The logits of `call`, which hands the pack's inputs to `model` in its own way; the tail's too.

    Raises:
        BadInput: the pack shares a prefix, and the model's attention can't be split.
    """
    inputs: dict[str, Any] = {"input_ids": pack.tokens, "position_ids": pack.position_ids, "use_cache": False}
    with packed_attention(model) as is_split:
        if is_split:
            inputs["packed"] = pack.layout
        elif pack.layout.prefix:
            raise BadInput(f"examples can't share a prefix in a {model.config.model_type} model; put it before each of them.")
        logits: Tensor = call(inputs).logits.squeeze(0)  # whose gradient is a view, unlike that of [0]
    return logits


def pack_logits(model: PreTrainedModel, pack: Pack) -> Tensor:
    """(length, vocabulary) logits of a pack that is on the model's device, its tail's too; raises as `run_packed`."""
    return run_packed(model, pack, lambda inputs: model(**inputs))


def lm_loss(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Mean cross-entropy of the labels of a pack, float32; logits are made only where a label is. Raises as `run_packed`."""
    pack = pack.to(model.device)
    logits = run_packed(model, pack, lambda inputs: model(**inputs, logits_to_keep=pack.predict_at))
    return cross_entropy(logits, pack.targets.to(logits.device))


def with_prompt(examples: Sequence[Example], prompt: Tensor) -> list[Example]:
    """The examples with prompt tokens in front, which carry no loss."""
    return [Example(torch.cat([prompt, example.tokens]), len(prompt) + example.prompt_tokens) for example in examples]


class PackSampler:
    """Goes through examples in packs, in another order each epoch; its place is two numbers.

    An epoch's order depends on the seed and the epoch alone. Packs are filled in that order until the next example would not
    fit; an example longer than a pack is a pack alone. With a prefix, every pack starts with it, once.
    """

    def __init__(self, examples: Sequence[Example], pack_tokens: int, seed: int, prefix: Tensor | None = None) -> None:
        if not examples:
            raise BadInput("there is no training text to learn from; give a source with at least two examples.")
        self.examples = examples
        self.pack_tokens = pack_tokens
        self.seed = seed
        self.prefix = prefix
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
        chosen = [self.examples[i] for i in self._plan[self.index]]
        self.index += 1
        return Pack.of(chosen) if self.prefix is None else Pack.after(self.prefix, chosen)

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
                filled = 0 if self.prefix is None else len(self.prefix)
            packs[-1].append(i)
            filled += length
        return packs
