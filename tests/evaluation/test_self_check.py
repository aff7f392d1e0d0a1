"""Models that forget, or look ahead: shared scoring is the model's own, or isn't used; a model that isn't causal is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from prunebench.evaluation.engine import self_check
from prunebench.evaluation.engine.engine import Engine, context_length
from prunebench.evaluation.engine.generation import GenerationRequest
from prunebench.evaluation.engine.scoring import ScoreRequest, plain_scores
from prunebench.evaluation.engine.self_check import make_scorer, refuse_non_causal, window_sizes
from prunebench.evaluation.own_code import is_stock
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import BadInput
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks
from tests.evaluation.conftest import VOCAB_SIZE, byte_tokenizer, small_model

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA4 = {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8}
GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}


def model_of(name: str, config: str, **settings: Any) -> Any:
    """A random model with attention sharp enough that a token more or less is seen in its answers."""
    torch.manual_seed(0)
    settings = {key: value for key, value in (COMMON | settings).items() if value is not None}
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    return model


def requests_of(length: int) -> list[ScoreRequest]:
    """Four contexts behind a header, two choices each; the longest has `length` input tokens."""
    generator = np.random.default_rng(length)

    def draw(n: int) -> list[int]:
        return generator.integers(3, VOCAB_SIZE, n).tolist()

    header = draw(max(1, length - 12))
    found = []
    for size in (1, 4, 7, 8):
        context = header + draw(min(size, length - 4))
        for choice in (1, 5):
            tail = draw(choice)
            found.append(ScoreRequest((context + tail)[:-1], tail))
    return found


def assert_own(engine: Engine, requests: list[ScoreRequest]) -> None:
    for score, expected in zip(engine.score(requests), plain_scores(engine.model, requests), strict=True):
        assert score.log_probs == pytest.approx(expected.log_probs, abs=1e-3)


WINDOWED = {
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {"head_dim": 8}, "sliding_window"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"head_dim": 8, "sliding_window_pattern": 2}, "sliding_window"),
    "mistral": ("MistralForCausalLM", "MistralConfig", {}, "sliding_window"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1}, "sliding_window"),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", {}, "sliding_window"),
    "modernbert": ("ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", {"cls_token_id": 1, "sep_token_id": 2}, "local_attention"),
}
FORGETFUL = {
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", LLAMA4, "attention_chunk_size"),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {**GPT_NEO, "num_hidden_layers": None}, "window_size"),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", {"head_dim": 8, "lru_width": 32}, "attention_window_size"),
}


@pytest.mark.parametrize("size", [8, 13, 32, 100])
@pytest.mark.parametrize("family", WINDOWED)
def test_windows_that_the_engine_knows_are_shared_and_right(family: str, size: int) -> None:
    name, config, settings, key = WINDOWED[family]
    engine = Engine(model_of(name, config, **settings, **{key: size}), byte_tokenizer())
    assert engine.scorer is not None
    assert not engine.notes
    for length in {size - 1, size, size + 1, 2 * size + 3}:
        assert_own(engine, requests_of(length))


@pytest.mark.parametrize("size", [8, 13, 32, 100])
@pytest.mark.parametrize("family", FORGETFUL)
def test_attention_that_the_engine_does_not_know_is_never_shared(family: str, size: int) -> None:
    name, config, settings, key = FORGETFUL[family]
    engine = Engine(model_of(name, config, **settings, **{key: size}), byte_tokenizer())
    assert engine.scorer is None
    assert "every request was computed on its own" in engine.notes[0]
    assert_own(engine, requests_of(2 * size + 3))


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_window_that_the_model_applies_off_by_one_is_found(shift: int) -> None:
    model = model_of("Gemma2ForCausalLM", "Gemma2Config", head_dim=8, sliding_window=40)
    model.model.layers[0].self_attn.sliding_window = 40 + shift  # what the layer hands over; its mask is of 40
    sharing = make_scorer(model)
    assert sharing.scorer is None
    assert "longer than sliding_window" in (sharing.problem or "")


@pytest.mark.parametrize("size", [33, 64])
def test_chunks_are_found_in_half_precision(size: int) -> None:
    model = model_of("Llama4ForCausalLM", "Llama4TextConfig", attention_chunk_size=size, **LLAMA4).bfloat16()
    assert make_scorer(model).scorer is None
    assert make_scorer(small_model("llama").bfloat16()).scorer is not None


def test_a_size_too_long_to_try_bounds_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "LONGEST_PROBE", 32)
    engine = Engine(model_of("Llama4ForCausalLM", "Llama4TextConfig", attention_chunk_size=40, **LLAMA4), byte_tokenizer())
    assert engine.scorer is not None
    assert engine.shared_up_to == 40
    assert_own(engine, requests_of(38))
    assert not engine.notes
    assert_own(engine, requests_of(45))  # some shorter, some longer
    assert engine.notes == ["the model names attention_chunk_size 40: requests with more tokens were computed on their own"]
    assert engine.scorer is not None


def test_generation_takes_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "LONGEST_PROBE", 32)
    engine = Engine(model_of("Llama4ForCausalLM", "Llama4TextConfig", attention_chunk_size=40, **LLAMA4), byte_tokenizer())
    requests = [(f"{'w' * length} Q: {length}\nA:", {"max_gen_toks": 6}) for length in (2, 9, 24, 31, 60)]
    answers = engine.generate_until(requests).responses
    prompts = [engine.tokenizer(text)["input_ids"] for text, _ in requests]
    alone = engine._generate_alone([GenerationRequest(ids, 6, lambda new: new[-1] == 2) for ids in prompts], None)
    assert answers == [engine.tokenizer.decode(ids, skip_special_tokens=True) for ids in alone]
    assert len(engine.notes) == 1


def test_a_window_in_no_config_is_found_on_the_first_request_that_is_long_enough() -> None:
    model = small_model("llama")
    for layer in model.model.layers:
        original = layer.self_attn.forward

        def forward(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            n = kwargs["hidden_states"].shape[1]
            near = torch.ones(n, n).tril().triu(-49).bool()
            return original(*args, **{**kwargs, "attention_mask": torch.zeros(1, 1, n, n).masked_fill(~near, -1e9)})

        layer.self_attn.forward = forward
    engine = Engine(model, byte_tokenizer())
    assert_own(engine, requests_of(48))
    assert not engine.notes
    assert_own(engine, requests_of(80))
    assert "can't share prefixes between requests of" in engine.notes[0]
    assert_own(engine, requests_of(20))


def test_requests_of_a_model_with_code_of_its_own_are_compared_once_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.evaluation.engine import engine as module

    lengths: list[int] = []
    real = module.differs_on
    monkeypatch.setattr(module, "differs_on", lambda model, scorer, tokens: lengths.append(len(tokens)) or real(model, scorer, tokens))
    model = small_model("llama")
    for is_own in (False, True):
        if is_own:
            model.register_forward_hook(lambda module, inputs, output: output)
        engine = Engine(model, byte_tokenizer())
        for length in (30, 20, 30, 60, 50):
            engine.score(requests_of(length))
        longest = [max(len(request.inputs) for request in requests_of(length)) for length in (30, 60)]
        assert lengths == (longest if is_own else [])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention_window_size": 77}, {77: "attention_window_size"}),
        ({"text_config": {"attn": {"attention_chunk_size": 55}}}, {55: "attention_chunk_size"}),
        ({"windows_per_layer": [11, 4096, None]}, {11: "windows_per_layer", 4096: "windows_per_layer"}),
        ({"sparse": {"block": {"size": 64}}, "index_topk": 99}, {64: "size", 99: "index_topk"}),
        ({"use_sliding_window": True, "rope_local_theta": 10000, "num_local_experts": 16, "block_token_id": 7}, {}),
    ],
)
def test_sizes_are_looked_for_by_name_at_any_depth(settings: dict[str, Any], expected: dict[int, str]) -> None:
    model = small_model("llama")
    for key, value in settings.items():
        setattr(model.config, key, value)
    assert window_sizes(model) == expected


def test_sizes_of_modules_count_where_the_config_names_none() -> None:
    model = small_model("llama")
    model.model.layers[1].self_attn.attention_window = 21
    assert window_sizes(model) == {21: "attention_window"}


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_models_pass(family: str) -> None:
    refuse_non_causal(small_model(family), 256)
    refuse_non_causal(small_model(family).bfloat16(), 256)


def test_a_uniform_and_a_broken_model_are_causal() -> None:
    uniform, broken, part = (small_model("llama") for _ in range(3))
    uniform.lm_head.weight.data.zero_()
    broken.model.norm.weight.data.fill_(float("nan"))
    part.model.embed_tokens.weight.data[::2] = float("nan")
    for model in (uniform, broken, part):
        refuse_non_causal(model, 256)


BIDIRECTIONAL = {"head_dim": 8, "use_bidirectional_attention": True}
AHEAD = {
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", BIDIRECTIONAL, "use_bidirectional_attention=True"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"is_causal": False}, "is_causal=False"),
    "bert": ("BertLMHeadModel", "BertConfig", {}, "is_decoder=False"),
    "roberta": ("RobertaForCausalLM", "RobertaConfig", {"is_decoder": False}, "is_decoder=False"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", AHEAD)
def test_a_model_that_looks_ahead_is_refused(family: str, dtype: torch.dtype) -> None:
    name, config, settings, said = AHEAD[family]
    model = model_of(name, config, **settings).to(dtype)
    with pytest.raises(BadInput, match=rf"{name} isn't causal \({said}\): a later token changes") as caught:
        Engine(model, byte_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_hardly_looks_ahead_is_refused_too(dtype: torch.dtype) -> None:
    """Fresh weights attend to everything alike and almost not at all."""
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(transformers.BertConfig(**COMMON)).eval().to(dtype)
    with pytest.raises(BadInput, match="BertLMHeadModel isn't causal"):
        refuse_non_causal(model, 256)


@pytest.mark.parametrize("block", [2, 5, 8, 15])
def test_a_model_that_looks_ahead_within_a_block_is_refused(block: int) -> None:
    model = small_model("llama")
    for layer in model.model.layers:
        original = layer.self_attn.forward

        def forward(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            n = kwargs["hidden_states"].shape[1]
            place = torch.arange(n)
            sees = place[None, :] // block <= place[:, None] // block
            return original(*args, **{**kwargs, "attention_mask": torch.zeros(1, 1, n, n).masked_fill(~sees, -1e9)})

        layer.self_attn.forward = forward
    with pytest.raises(BadInput, match="isn't causal: a later token"):
        refuse_non_causal(model, 256)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    model = small_model("llama")
    model.config.is_encoder_decoder = True
    with pytest.raises(BadInput, match="is an encoder with a decoder; give a causal language model"):
        Engine(model, byte_tokenizer())


def test_the_context_of_a_nested_text_model_counts() -> None:
    from types import SimpleNamespace

    tokenizer = byte_tokenizer()
    nested = SimpleNamespace(max_position_embeddings=77, text_config=SimpleNamespace(max_position_embeddings=99))
    assert context_length(nested, tokenizer) == 99
    assert context_length(SimpleNamespace(n_positions=55, text_config=SimpleNamespace()), tokenizer) == 55
    assert context_length(SimpleNamespace(), tokenizer) == 2048


def test_a_context_shorter_than_the_probes_is_kept_to() -> None:
    model = model_of("GPT2LMHeadModel", "GPT2Config", n_positions=12, n_embd=32, n_layer=2, n_head=4, max_position_embeddings=None)
    engine = Engine(model, byte_tokenizer())
    assert engine.scorer is not None
    assert len(engine.loglikelihood([("ab", " cd"), ("a long context here", " cd")]).responses) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_libraries_and_pruned_ones_bring_no_code_of_their_own(family: str) -> None:
    model = small_model(family)
    assert is_stock(model)
    assert is_stock(slice_model(model, random_masks(Anatomy.from_model(model), seed=2, sublayers=True)))


def test_a_class_whose_method_was_replaced_is_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama")
    attention = type(model.model.layers[0].self_attn)
    original = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, **kwargs: original(*args, **kwargs))
    assert not is_stock(model)
