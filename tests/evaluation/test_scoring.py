"""Packed, shared scoring gives the model's own log-likelihoods, whatever the architecture."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from prunebench.evaluation.engine import scoring
from prunebench.evaluation.engine.head import Head
from prunebench.evaluation.engine.scoring import Scorer, ScoreRequest, plain_scores
from prunebench.evaluation.engine.self_check import make_scorer
from prunebench.models.anatomy import Anatomy
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks
from tests.evaluation.conftest import VOCAB_SIZE, small_model


def some_requests(seed: int = 0, count: int = 12) -> list[ScoreRequest]:
    """Items with a shared header, contexts, and choices of several lengths; some are equal, some are prefixes."""
    generator = np.random.default_rng(seed)

    def draw(n: int) -> list[int]:
        return generator.integers(3, VOCAB_SIZE, n).tolist()

    header = draw(13)
    requests = []
    for item in range(count):
        context = (header if item % 4 else []) + draw(1 + item)
        for choice in (1, 1, 3, 6):
            tail = draw(choice)
            requests.append(ScoreRequest((context + tail)[:-1], tail))
    requests.append(requests[3])
    requests.append(ScoreRequest(header[:-1], header[-4:]))
    requests.append(ScoreRequest(header, draw(1)))
    return requests


def naive(model: Any, requests: list[ScoreRequest]) -> list[tuple[float, bool]]:
    """One float64 forward pass a request."""
    exact = copy.deepcopy(model).double()
    answers = []
    for request in requests:
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([list(request.inputs)]), use_cache=False).logits[0]
        last = torch.log_softmax(logits[-len(request.targets) :].double(), -1)
        targets = torch.tensor(list(request.targets))
        answers.append((float(last[range(len(targets)), targets].sum()), bool((last.argmax(-1) == targets).all())))
    return answers


def assert_equal(scores: list[Any], expected: list[tuple[float, bool]], requests: list[ScoreRequest]) -> None:
    for score, (total, greedy), request in zip(scores, expected, requests, strict=True):
        assert score.total == pytest.approx(total, abs=5e-6 * len(request.targets) + 1e-4)
        assert score.is_greedy == greedy


@pytest.mark.parametrize("row_tokens", [7, 40, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_scores_equal_one_pass_a_request(family: str, row_tokens: int) -> None:
    model = small_model(family)
    requests = some_requests()
    assert_equal(Scorer(model, row_tokens).score(requests), naive(model, requests), requests)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral", "olmo2", "phi3", "qwen3"])
def test_uneven_pruned_models_without_some_sublayers_are_scored_alike(family: str) -> None:
    model = small_model(family)
    masks = random_masks(Anatomy.from_model(model), seed=2, hidden=family != "phi3", sublayers=True)
    pruned = slice_model(model, masks).eval()
    requests = some_requests(1)
    sharing = make_scorer(pruned, 30)
    assert sharing.problem is None
    assert sharing.scorer is not None
    assert_equal(sharing.scorer.score(requests), naive(pruned, requests), requests)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_models_own_attention_is_back_after_scoring(family: str) -> None:
    model = small_model(family)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    before = model(ids).logits
    implementation = model.config._attn_implementation
    Scorer(model, 9).score(some_requests())
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_half_precision_stays_near_float64(family: str, dtype: torch.dtype) -> None:
    from prunebench.models.tiny import tiny_model

    model = tiny_model(family, vocab_size=VOCAB_SIZE).to(dtype).eval()
    requests = some_requests()
    for score, (total, _) in zip(Scorer(model, 40).score(requests), naive(model, requests), strict=True):
        assert score.total == pytest.approx(total, abs=0.1)


def test_tokens_are_computed_once() -> None:
    model = small_model("llama")
    requests = some_requests()
    scorer = Scorer(model, 10_000)
    scorer.score(requests)
    inputs = [tuple(request.inputs) for request in requests]
    assert scorer.tokens_computed == len({s[: i + 1] for s in inputs for i in range(len(s))})


def test_rows_are_halved_when_memory_runs_out_and_grow_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    requests = some_requests(count=40)
    real = scoring.forward_hidden
    refused = []

    def tight(model: Any, row: Any) -> Any:
        size = sum(len(unit) for unit in row.units)
        if size > 60 and len(refused) < 4:
            refused.append(size)
            raise torch.OutOfMemoryError("out of memory")
        return real(model, row)

    monkeypatch.setattr(scoring, "forward_hidden", tight)
    scorer = Scorer(model, 400)
    scores = scorer.score(requests)
    assert refused
    assert scorer.budget.tokens > min(refused) // 2  # grew after the pressure was gone
    assert_equal(scores, naive(model, requests), requests)


def test_a_single_chain_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: Any, row: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scoring, "forward_hidden", full)
    with pytest.raises(torch.OutOfMemoryError):
        Scorer(small_model("llama"), 64).score([ScoreRequest([5, 6], [7])])


def test_a_model_with_its_own_attention_falls_back_and_says_so() -> None:
    model = small_model("llama")
    attention = model.model.layers[1].self_attn
    original = attention.forward

    def shifted(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = original(hidden_states, *args, **kwargs)
        return output + hidden_states.cumsum(1), weights  # mixes tokens outside of the attention interface

    attention.forward = shifted
    sharing = make_scorer(model)
    assert sharing.scorer is None
    assert "LlamaForCausalLM can't share prefixes between requests (log-probabilities differ" in (sharing.problem or "")
    requests = some_requests()
    assert_equal(plain_scores(model, requests), naive_in_place(model, requests), requests)


def naive_in_place(model: Any, requests: list[ScoreRequest]) -> list[tuple[float, bool]]:
    answers = []
    for request in requests:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(request.inputs)]), use_cache=False).logits[0]
        last = torch.log_softmax(logits[-len(request.targets) :].double(), -1)
        targets = torch.tensor(list(request.targets))
        answers.append((float(last[range(len(targets)), targets].sum()), bool((last.argmax(-1) == targets).all())))
    return answers


def test_the_sliced_head_picks_the_first_of_equal_logits() -> None:
    weight = torch.zeros(10_000, 4)
    weight[[17, 9_000]] = 1.0  # two slices hold the same highest logit
    head = Head(weight, None, None)
    hidden = torch.ones(2, 4)
    log_probs, greedy = head.score(hidden, torch.tensor([0, 0, 1]), torch.tensor([17, 9_000, 3]))
    expected = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    assert greedy.tolist() == [True, False, False]
    assert torch.allclose(log_probs, torch.stack([expected[0, 17], expected[0, 9_000], expected[1, 3]]), atol=1e-6)
