"""Training examples for recovery and for methods that learn: token ids and how many of them are prompt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunebench.methods.data.sampling import CleanDocuments, ended, tokenize
from prunebench.models.errors import BadInput
from prunebench.models.special_tokens import Bos, bos_ids

BOS = "whether {} begin with BOS: as the tokenizer does in real use, always, or never"


def bos_words(bos: int) -> str:
    """How a description of data names its choice."""
    return "with BOS" if bos else "without BOS"


class TrainingConfig(BaseModel):
    """Says which text a recovery or a learning method trains on. Defaults: the recipe of LLM-Pruner's code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("alpaca", min_length=1, description="as CalibrationConfig.source; 'embedded' where nothing else is there")
    max_len: int = Field(256, ge=8, description="tokens, BOS included; longer examples are cut at the end")
    bos: Bos = Field("tokenizer", description=BOS.format("examples"))
    validation_examples: int = Field(2000, ge=1, description="held out; at most a tenth of what the source has")
    max_examples: int | None = Field(None, ge=1, description="training examples to read; None: all of the source")


@dataclass(frozen=True)
class Example:
    """One training sequence.

    tokens: (length,) int64 with the end-of-text token where it wasn't cut; prompt_tokens: so many at the start carry no
    loss, BOS among them (none of plain text).
    """

    tokens: Tensor
    prompt_tokens: int

    @property
    def labels(self) -> Tensor:
        """(length,) int64: the tokens, with -100 in place of the prompt."""
        labels = self.tokens.clone()
        labels[: self.prompt_tokens] = -100
        return labels


@dataclass(frozen=True)
class TrainingText:
    """Training and validation examples in a fixed random order.

    Where the source is instructions, the loss is on the response; where it is plain text, on everything, in pieces of
    at most `max_len` tokens. Every example begins with `bos_tokens` ids of BOS.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    description: str
    bos_tokens: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((len(example.tokens) for example in (*self.train, *self.validation)), default=0)

    def without_bos(self) -> TrainingText:
        """The same examples without their BOS, to stand behind a prompt that has it."""
        if not self.bos_tokens:
            return self

        def without(examples: tuple[Example, ...]) -> tuple[Example, ...]:
            return tuple(Example(e.tokens[self.bos_tokens :], e.prompt_tokens - self.bos_tokens) for e in examples)

        return TrainingText(without(self.train), without(self.validation), self.description)

    @cached_property
    def sha256(self) -> str:
        """Hash of all token ids and prompt lengths, in order."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            for example in part:
                digest.update(f"{len(example.tokens)},{example.prompt_tokens};".encode())
                digest.update(example.tokens.numpy().tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def build_training_text(
    config: TrainingConfig, documents: CleanDocuments, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator
) -> TrainingText:
    """Tokenises the documents of a source in random order; the first ones are held out for validation.

    Raises:
        BadInput: fewer than 2 usable examples, text that contains evaluation items, or bos 'always' without a BOS token.
    """
    bos = bos_ids(tokenizer, config.bos)
    begin = torch.tensor(bos, dtype=torch.int64)
    held_out = max(1, min(config.validation_examples, len(documents.corpus.documents) // 10))
    wanted = None if config.max_examples is None else config.max_examples + held_out
    examples: list[Example] = []
    for document in documents.shuffled(generator):
        if wanted is not None and len(examples) >= wanted:
            break
        if document.prompt:
            if not document.response.strip():
                continue
            prompt = torch.cat([begin, tokenize(tokenizer, document.prompt, bos)])
            tokens = torch.cat([prompt, ended(tokenize(tokenizer, document.response), tokenizer)])[: config.max_len]
            if len(tokens) > len(prompt):
                examples.append(Example(tokens, len(prompt)))
        else:
            pieces = ended(tokenize(tokenizer, document.text, bos), tokenizer).split(config.max_len - len(bos))
            examples += [Example(torch.cat([begin, piece]), len(bos)) for piece in pieces if len(piece) > 1]
    documents.refuse_if_contaminated()
    if len(examples) <= held_out:
        raise BadInput(
            f"training source {documents.name!r} ({documents.corpus.origin}) has {len(examples)} usable examples; "
            "at least one for training and one for validation are needed."
        )
    kept = examples[:wanted]
    description = f"{documents.name} ({documents.corpus.origin}), {bos_words(len(bos))}{documents.note}"
    return TrainingText(tuple(kept[held_out:]), tuple(kept[:held_out]), description, len(bos))


def training_texts(settings: BaseModel, path: str = "") -> dict[str, TrainingConfig]:
    """Every training text among `settings`, by its dotted name."""
    found: dict[str, TrainingConfig] = {}
    for name, value in settings:
        if isinstance(value, TrainingConfig):
            found[path + name] = value
        elif isinstance(value, BaseModel):
            found |= training_texts(value, f"{path}{name}.")
    return found
