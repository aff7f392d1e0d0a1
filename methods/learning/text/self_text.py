"""Training text that the model writes itself, so that pruning needs no data.

Source: LLM-QAT, arXiv 2305.17888, section 3.1: a random first token, the next few taken greedily, the rest drawn from the
model's own distribution. Its code has no BOS; here a text begins as other text of the grid does. The random token stays behind
a BOS: after BOS alone, the tokens taken greedily would be the same in every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data.training_text import Example
from prunebench.methods.learning.run.state import read_state, write_state
from prunebench.methods.pruner import Progress

GREEDY_TOKENS = 4
BATCH = 32


def self_generated(
    model: PreTrainedModel, count: int, length: int, bos: Sequence[int], *, seed: int, folder: Path, progress: Progress
) -> tuple[Example, ...]:
    """`count` texts of `length` tokens, as plain text behind `bos`. Each batch is kept in `folder`, so that a killed run goes on.

    The draws are made on the CPU in float32 from the seed and the batch's number; the same on one machine.
    """
    texts: list[Tensor] = []
    for batch, start in enumerate(range(0, count, BATCH)):
        size = min(BATCH, count - start)
        path = folder / f"self_text_{batch:05d}.safetensors"
        facts = {"seed": seed, "batch": batch, "size": size, "length": length, "bos": list(bos)}
        found = read_state(path)
        if found is None or found[1] != facts:
            generator = torch.Generator().manual_seed((seed + 7_919 * (batch + 1)) % 2**63)
            found = ({"tokens": _write_texts(model, size, length, bos, generator)}, facts)
            write_state(path, *found)
        texts += found[0]["tokens"].unbind(0)
        progress("writing its own text", start + size, count)
    return tuple(Example(tokens, len(bos)) for tokens in texts)


@torch.no_grad()
def _write_texts(model: PreTrainedModel, count: int, length: int, bos: Sequence[int], generator: torch.Generator) -> Tensor:
    runnable: Any = model
    vocabulary = model.config.get_text_config().vocab_size
    first = torch.randint(vocabulary, (count, 1), generator=generator)
    tokens = torch.cat([torch.tensor(bos, dtype=torch.int64).expand(count, -1), first], dim=1)
    cache = None
    while tokens.shape[1] < length:
        step = tokens if cache is None else tokens[:, -1:]
        output = runnable(input_ids=step.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits = output.logits[:, -1].float().cpu()
        if tokens.shape[1] - len(bos) <= GREEDY_TOKENS:
            following = logits.argmax(-1, keepdim=True)
        else:
            following = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens
