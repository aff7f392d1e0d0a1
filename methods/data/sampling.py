"""Draws fixed-length token samples from a corpus; the same seed draws the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunebench.methods.data.contamination import EvaluationIndex
from prunebench.methods.data.sources import Corpus, Document
from prunebench.models.errors import BadInput

MOST_CONTAMINATED = 0.05
"""A source of which more than this share of the documents holds evaluation items is refused as a whole."""
FEWEST_TO_JUDGE = 20


@dataclass
class CleanDocuments:
    """Goes through documents in a random order and leaves out those that contain an evaluation item.

    Single documents that quote an item (web pages do) are dropped and counted; a source of which many do is refused,
    for then it is the benchmark itself.
    """

    corpus: Corpus
    name: str
    index: EvaluationIndex
    checked: int = 0
    dropped: int = 0
    example: str = field(default="")

    def shuffled(self, generator: torch.Generator) -> Iterator[Document]:
        """Documents without empty ones, in an order that depends on the generator only."""
        for i in torch.randperm(len(self.corpus.documents), generator=generator).tolist():
            if self.is_clean(self.corpus.documents[i]):
                yield self.corpus.documents[i]

    def is_clean(self, document: Document) -> bool:
        if not document.text.strip():
            return False
        self.checked += 1
        item = self.index.item_in(document.text)
        if item is None:
            return True
        self.dropped, self.example = self.dropped + 1, item
        return False

    def refuse_if_contaminated(self) -> None:
        """Raises BadInput where too many of the documents seen so far held evaluation items."""
        if self.dropped > MOST_CONTAMINATED * self.checked and (self.checked >= FEWEST_TO_JUDGE or self.dropped == self.checked):
            raise BadInput(
                f"calibration source {self.name!r} contains evaluation items: {self.dropped} of {self.checked} documents do, "
                f"for one {self.example}; calibrate on text that isn't evaluated."
            )

    @property
    def note(self) -> str:
        return f", {self.dropped} documents with evaluation items left out" if self.dropped else ""


def draw_samples(
    documents: CleanDocuments,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    seq_len: int,
    generator: torch.Generator,
    bos: Sequence[int] = (),
) -> Tensor:
    """(num_samples, seq_len) int64: the ids of `bos`, then text; crops of text that don't overlap, without padding.

    Raises:
        BadInput: too little text for that many samples, or text that contains evaluation items.
    """
    draw = _from_documents if documents.corpus.drawing == "documents" else _from_stream
    samples = draw(documents, tokenizer, num_samples, seq_len - len(bos), generator, bos)
    documents.refuse_if_contaminated()
    if len(samples) < num_samples:
        raise BadInput(
            f"calibration source {documents.name!r} ({documents.corpus.origin}) gives {len(samples)} samples of {seq_len} tokens, "
            f"{num_samples} are asked for; lower num_samples or seq_len, or choose a longer text."
        )
    begin = torch.tensor(bos, dtype=torch.int64)
    return torch.stack([torch.cat([begin, sample]) for sample in samples])


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, bos: Sequence[int] = ()) -> Tensor:
    """(tokens,) int64 of the text alone: no special tokens are added, and a `bos` that the text itself begins with is left out.

    Long texts give no warning.
    """
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    own = len(bos) if bos and list(tokens[: len(bos)]) == list(bos) else 0
    return torch.tensor(tokens[own:], dtype=torch.int64)


def ended(tokens: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The tokens with the end-of-text token at their end, once; as they are where the tokenizer has none."""
    end = tokenizer.eos_token_id
    if end is None or (len(tokens) and int(tokens[-1]) == end):
        return tokens
    return torch.cat([tokens, torch.tensor([end], dtype=torch.int64)])


def _from_documents(
    documents: CleanDocuments,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    seq_len: int,
    generator: torch.Generator,
    bos: Sequence[int],
) -> list[Tensor]:
    """One random crop of each document that is long enough; further crops of the same documents only when these run out."""
    samples: list[Tensor] = []
    further: list[Tensor] = []
    for document in documents.shuffled(generator):
        if len(samples) == num_samples:
            break
        tokens = tokenize(tokenizer, document.text, bos)
        if len(tokens) < seq_len:
            continue
        start = int(torch.randint(len(tokens) - seq_len + 1, (), generator=generator))
        samples.append(tokens[start : start + seq_len])
        for rest in (tokens[start % seq_len : start], tokens[start + seq_len :]):
            further += [crop for crop in rest.split(seq_len) if len(crop) == seq_len]
    missing = num_samples - len(samples)
    if missing:
        samples += [further[i] for i in torch.randperm(len(further), generator=generator)[:missing].tolist()]
    return samples


def _from_stream(
    documents: CleanDocuments,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    seq_len: int,
    generator: torch.Generator,
    bos: Sequence[int],
) -> list[Tensor]:
    """Documents in random order, joined (by the end-of-text token after instructions, else by a blank line), then cut."""
    pieces: list[Tensor] = []
    total = 0
    for document in documents.shuffled(generator):
        if total >= num_samples * seq_len:
            break
        tokens = tokenize(tokenizer, document.text if document.prompt else document.text + "\n\n", bos)
        pieces.append(ended(tokens, tokenizer) if document.prompt else tokens)
        total += len(pieces[-1])
    stream = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
    return [crop for crop in stream.split(seq_len) if len(crop) == seq_len][:num_samples]
