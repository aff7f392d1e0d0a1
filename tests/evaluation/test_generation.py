"""Greedy texts equal the model's own `generate`, with rows that leave early and others that take their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prunebench.evaluation.engine import generation
from prunebench.evaluation.engine.generation import GenerationRequest, Generator
from prunebench.models.anatomy import Anatomy
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks
from tests.evaluation.conftest import VOCAB_SIZE, small_model


def prompts(seed: int = 0) -> list[list[int]]:
    """Behind a shared header, without it, equal ones, and the bare header itself."""
    generator = np.random.default_rng(seed)

    def draw(n: int) -> list[int]:
        return generator.integers(3, VOCAB_SIZE, n).tolist()

    header = draw(11)
    found = [header + draw(1 + i) for i in range(9)]
    other = draw(17)  # a second header: its rows are decoded in the same steps
    found += [other + draw(2 + i) for i in range(5)]
    found += [found[2], header, [*found[4], 7], draw(4), draw(15)]
    return found


def own(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def never(tokens: list[int]) -> bool:
    return False


@pytest.mark.parametrize(("slots", "row_tokens"), [(3, 20), (50, 500)])
@pytest.mark.parametrize("family", FAMILIES)
def test_generated_tokens_equal_the_models_own(family: str, slots: int, row_tokens: int) -> None:
    model = small_model(family)
    requests = [GenerationRequest(prompt, 4 + i % 7, never) for i, prompt in enumerate(prompts())]
    generated = Generator(model, row_tokens, slots).generate(requests)
    assert generated == [own(model, list(request.prompt), request.max_new_tokens) for request in requests]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_pruned_models_with_missing_sublayers_generate_alike(family: str) -> None:
    model = small_model(family)
    pruned = slice_model(model, random_masks(Anatomy.from_model(model), seed=2, sublayers=True)).eval()
    requests = [GenerationRequest(prompt, 8, never) for prompt in prompts(1)]
    generated = Generator(pruned, 30, 3).generate(requests)
    assert generated == [own(pruned, list(request.prompt), 8) for request in requests]


def test_a_row_stops_on_its_own_condition_and_the_others_go_on() -> None:
    model = small_model("llama")
    wanted = prompts()
    whole = [own(model, prompt, 12) for prompt in wanted]
    stops = [tokens[i % 5] for i, tokens in enumerate(whole)]
    requests = [GenerationRequest(prompt, 12, lambda new, stop=stop: new[-1] == stop) for prompt, stop in zip(wanted, stops, strict=True)]
    for generated, tokens, stop in zip(Generator(model, 40, 4).generate(requests), whole, stops, strict=True):
        assert generated == tokens[: tokens.index(stop) + 1]


def test_finished_rows_make_room_for_waiting_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = generation._DecodeRow.__init__

    def watch(self: Any, pools: Any, device: Any) -> None:
        sizes.append(sum(len(pool.slots) for pool in pools))
        real(self, pools, device)

    monkeypatch.setattr(generation._DecodeRow, "__init__", watch)
    model = small_model("llama")
    header = list(range(20, 34))
    requests = [GenerationRequest([*header, 40 + i], 2 + 9 * (i % 3 == 0), never) for i in range(18)]
    Generator(model, 500, 4).generate(requests)
    assert max(sizes) == 4
    assert sum(size == 4 for size in sizes) > len(sizes) // 2


def test_memory_pressure_halves_the_rows_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = generation._DecodeRow.__init__

    def tight(self: Any, pools: Any, device: Any) -> None:
        if sum(len(pool.slots) for pool in pools) > 3:
            raise torch.OutOfMemoryError("out of memory")
        real(self, pools, device)

    monkeypatch.setattr(generation._DecodeRow, "__init__", tight)
    model = small_model("llama")
    requests = [GenerationRequest(prompt, 5, never) for prompt in prompts()]
    generator = Generator(model, 500, 8)
    assert generator.generate(requests) == [own(model, list(r.prompt), 5) for r in requests]
    assert generator.capacity < 8
