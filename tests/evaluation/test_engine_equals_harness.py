"""What reaches the metrics is what lm-eval's `hf` backend would have returned."""

from __future__ import annotations

from typing import Any

import pytest

from prunebench.evaluation.engine.engine import Engine, NonFiniteScore, RequestProblem, disjoint_windows
from prunebench.models.errors import BadInput
from tests.evaluation.conftest import byte_tokenizer, small_model

TEXTS = [
    "Question: How do I boil the egg?\nAnswer:",
    "Question: How do I open the jar?\nAnswer:",
    "The cat sat on the",
    "ends with spaces  ",
    "x",
    "",
]
CHOICES = [" yes", " a longer answer, with the comma", " no", "y"]
PAIRS = [(text, choice) for text in TEXTS for choice in CHOICES]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=args, idx=i) for i, args in enumerate(arguments)]


def hf(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)


def assert_near(answers: list[Any], expected: list[Any], tokens: int = 40) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert answer[0] == pytest.approx(other[0], abs=5e-5 * tokens + 1e-4)
        assert answer[1] == other[1]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_log_likelihoods_equal_hf(family: str, adds_bos: bool) -> None:
    model, tokenizer = small_model(family), byte_tokenizer(adds_bos=adds_bos)
    answers = Engine(model, tokenizer).loglikelihood(PAIRS).responses
    expected = hf(model, tokenizer).loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    assert_near(answers, expected)


def test_a_text_that_starts_with_bos_gets_no_second_one() -> None:
    model, tokenizer = small_model("llama"), byte_tokenizer(adds_bos=True)
    pairs = [("<s>Hello the", " world"), ("Hello the", " world")]
    answers = Engine(model, tokenizer).loglikelihood(pairs).responses
    expected = hf(model, tokenizer).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert_near(answers, expected)
    assert answers[0] == answers[1]


def test_items_longer_than_the_context_are_cut_from_the_left_and_counted() -> None:
    model, tokenizer = small_model("llama", max_position_embeddings=48), byte_tokenizer()
    pairs = [("word " * 30 + "the end", " yes"), ("short", " no")]
    answers = Engine(model, tokenizer).loglikelihood(pairs)
    expected = hf(model, tokenizer).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert_near(answers.responses, expected)
    assert answers.truncated == {0}


@pytest.mark.parametrize("adds_bos", [False, True])
def test_rolling_log_likelihoods_equal_hf(adds_bos: bool) -> None:
    model, tokenizer = small_model("llama", max_position_embeddings=32), byte_tokenizer(adds_bos=adds_bos)
    texts = ["the rain in Spain " * 7, "short", "y"]
    answers = Engine(model, tokenizer).loglikelihood_rolling(texts).responses
    expected = hf(model, tokenizer).loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )
    assert answers == pytest.approx(expected, abs=2e-2)


@pytest.mark.parametrize(("count", "length"), [(1, 4), (4, 4), (5, 4), (11, 4), (9, 3), (12, 1)])
def test_windows_equal_the_harness_rule(count: int, length: int) -> None:
    from lm_eval import utils

    tokens = list(range(100, 100 + count))
    expected = [utils.make_disjoint_window(window) for window in utils.get_rolling_token_windows(tokens, 7, length, 1)]
    assert disjoint_windows(tokens, 7, length) == expected


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_generated_texts_equal_hf(family: str) -> None:
    model, tokenizer = small_model(family, seed=1), byte_tokenizer()
    header = "Q: not True is\nA: False\n\n"
    options = {"until": ["e", "\n\n", "Q"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 20}
    requests = [(header + f"Q: item {i} is\nA:", options) for i in range(6)]
    requests += [("no header", {"until": [], "max_gen_toks": 6}), ("other stop", {"until": "a", "max_gen_toks": 9})]
    answers = Engine(model, tokenizer).generate_until(requests).responses
    expected = hf(model, tokenizer).generate_until(instances("generate_until", requests), disable_tqdm=True)
    assert answers == expected


def test_a_configured_repetition_penalty_is_obeyed_and_reported(tokenizer: Any) -> None:
    model = small_model("llama", seed=1)
    model.generation_config.repetition_penalty = 1.9
    requests = [(f"Q: item {i} is", {"until": ["q"], "max_gen_toks": 12}) for i in range(3)]
    engine = Engine(model, tokenizer)
    expected = hf(model, tokenizer).generate_until(instances("generate_until", requests), disable_tqdm=True)
    assert engine.generate_until(requests).responses == expected
    assert "repetition_penalty=1.9" in engine.notes[0]


def test_long_prompts_leave_room_for_the_new_tokens() -> None:
    model, tokenizer = small_model("llama", max_position_embeddings=64), byte_tokenizer()
    requests = [("long words " * 12, {"until": ["\n"], "max_gen_toks": 10})]
    answers = Engine(model, tokenizer).generate_until(requests)
    assert answers.responses == hf(model, tokenizer).generate_until(instances("generate_until", requests), disable_tqdm=True)
    assert answers.truncated == {0}


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_prompt_stands_before_every_request(adds_bos: bool) -> None:
    model, tokenizer = small_model("llama"), byte_tokenizer(adds_bos=adds_bos)
    prompt = "Dear model, you are pruned.\n"
    pairs = [(text, choice) for text, choice in PAIRS if text.strip() == text and text]
    answers = Engine(model, tokenizer, prompt).loglikelihood(pairs).responses
    plain = byte_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == adds_bos
    backend = hf(model, tokenizer)
    direct = []
    for text, choice in pairs:
        whole, context = plain(text + choice)["input_ids"], plain(text)["input_ids"]
        direct.append((("", ""), ids + context, whole[len(context) :]))
    assert_near(answers, backend._loglikelihood_tokens(direct, disable_tqdm=True))


@pytest.mark.parametrize("prompt", [None, ""])
def test_an_empty_prompt_changes_nothing(prompt: str | None, tokenizer: Any) -> None:
    model = small_model("llama")
    assert Engine(model, tokenizer, prompt).loglikelihood(PAIRS) == Engine(model, tokenizer).loglikelihood(PAIRS)


def test_a_prompt_is_computed_once(tokenizer: Any) -> None:
    model = small_model("llama")
    pairs = [(f"item {i} is", " good") for i in range(10)]
    bare, prompted = Engine(model, tokenizer), Engine(model, tokenizer, "p" * 50)
    bare.loglikelihood(pairs)
    prompted.loglikelihood(pairs)
    assert prompted.tokens_computed - bare.tokens_computed == 50


def test_a_choice_without_tokens_is_named(tokenizer: Any) -> None:
    with pytest.raises(RequestProblem, match="Request 1: the choice '' holds no tokens"):
        Engine(small_model("llama"), tokenizer).loglikelihood([("a", " b"), ("a", "")])


def test_a_choice_longer_than_the_context_is_named(tokenizer: Any) -> None:
    model = small_model("llama", max_position_embeddings=16)
    with pytest.raises(RequestProblem, match=r"a choice holds 41 tokens, more than the model's context of 16"):
        Engine(model, tokenizer).loglikelihood([("a", " " + "b" * 40)])


def test_sampling_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RequestProblem, match="only greedy generation"):
        Engine(small_model("llama"), tokenizer).generate_until([("a", {"do_sample": True})])


def test_logits_that_are_not_numbers_name_the_request(tokenizer: Any) -> None:
    model = small_model("llama")
    engine = Engine(model, tokenizer)
    model.model.embed_tokens.weight.data[tokenizer("z")["input_ids"][0]] = float("nan")
    with pytest.raises(NonFiniteScore) as caught:
        engine.loglikelihood([("fine", " b"), ("zebra", " b")])
    assert caught.value.index == 1
    with pytest.raises(NonFiniteScore) as caught:
        engine.generate_until([("fine", {"max_gen_toks": 1}), ("zebra", {"max_gen_toks": 1})])
    assert caught.value.index == 1


def test_a_model_of_nothing_but_nan_is_reported_by_its_items(tokenizer: Any) -> None:
    model = small_model("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteScore):
        Engine(model, tokenizer).loglikelihood([("fine", " b")])


def test_a_tokenizer_without_bos_and_eos_scores_what_has_a_context() -> None:
    tokenizer = byte_tokenizer(bos=None, eos=None)
    engine = Engine(small_model("llama"), tokenizer)
    assert len(engine.loglikelihood([("a context", " b")]).responses) == 1
    assert engine.generate_until([("a", {"until": ["b"], "max_gen_toks": 3})]).responses
    with pytest.raises(BadInput, match="neither a BOS nor an EOS"):
        engine.loglikelihood([("", "b")])


def test_the_engine_is_an_lm_for_the_harness(tokenizer: Any) -> None:
    from lm_eval.api.model import LM

    from prunebench.evaluation.engine.lm import harness_lm

    lm = harness_lm(Engine(small_model("llama"), tokenizer))
    assert isinstance(lm, LM)
    assert len(lm.loglikelihood(instances("loglikelihood", PAIRS))) == len(PAIRS)
    assert len(lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("some text",)]))) == 1
    assert lm.generate_until(instances("generate_until", [("a", {"until": ["q"], "max_gen_toks": 2})]))


def test_a_model_that_cannot_share_gives_the_same_answers(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.evaluation.engine import engine as module
    from prunebench.evaluation.engine.self_check import Sharing

    model = small_model("llama")
    shared = Engine(model, tokenizer)
    monkeypatch.setattr(module, "make_scorer", lambda *_: Sharing(None, "LlamaForCausalLM can't share"))
    alone = Engine(model, tokenizer)
    assert alone.notes == ["LlamaForCausalLM can't share; every request was computed on its own"]
    assert_near(alone.loglikelihood(PAIRS).responses, shared.loglikelihood(PAIRS).responses, 1)
    requests = [("Q: one", {"until": ["e"], "max_gen_toks": 12}), ("Q: two", {"until": [], "max_gen_toks": 5})]
    assert alone.generate_until(requests) == shared.generate_until(requests)
