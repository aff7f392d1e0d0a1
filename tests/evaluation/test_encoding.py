"""Which ids a text becomes: what begins it, nothing behind it, no id that the model can't read."""

from __future__ import annotations

from typing import Any

import pytest

from prunebench.evaluation.catalogue import PerplexityDefinition
from prunebench.evaluation.engine.encoding import Encoder
from prunebench.evaluation.engine.engine import Engine, RequestProblem
from prunebench.evaluation.perplexity import score_blocks, score_documents, token_blocks
from prunebench.models.errors import BadInput
from prunebench.models.special_tokens import bos_ids, prompt_ids, special_affixes
from tests.evaluation.conftest import VOCAB_SIZE, byte_tokenizer, small_model

PAIRS = [("Question: which one?\nAnswer:", f" {letter}") for letter in "ABCD"] + [("", "alone"), ("ends in spaces  ", "so")]
TEXTS = ["the rain in Spain", "x", "a </s> in the middle", "</s>"]
ROWS = [{"text": f"Line {i} of the text, with some words."} for i in range(8)]

# what stands around a text -> what is left of it
AROUND = {
    "$A </s>": "$A",
    "$A </s> </s>": "$A",
    "$A <pad>": "$A",
    "$A </s> <pad>": "$A",
    "<s> $A </s>": "<s> $A",
    "<s> $A </s> </s>": "<s> $A",
    "<pad> <s> $A </s>": "<pad> <s> $A",
}


@pytest.mark.parametrize("around", [*AROUND, *AROUND.values()])
def test_affixes_are_what_the_tokenizer_puts_around_a_text(around: str) -> None:
    tokenizer = byte_tokenizer(around=around)
    before, after = special_affixes(tokenizer)
    left, right = around.split("$A")
    assert tokenizer.convert_ids_to_tokens(before) == left.split()
    assert tokenizer.convert_ids_to_tokens(after) == right.split()


def test_affixes_are_told_where_the_first_probe_is_no_text_of_the_vocabulary() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "the": 2}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    assert special_affixes(tokenizer) == ([0], [1])


@pytest.mark.parametrize("around", AROUND)
def test_nothing_stands_behind_a_text(around: str) -> None:
    """Log-likelihoods, texts, rolling windows, blocks, documents and prompts are those of a tokenizer that adds nothing behind."""
    model = small_model("llama")
    found = []
    for kind in (around, AROUND[around]):
        engine = Engine(model, byte_tokenizer(around=kind), "A prompt.\n" if "<pad>" in around else None)
        blocks = token_blocks(engine, ROWS, PerplexityDefinition(kind="blocks", field="text", join="\n\n", block=16))
        documents = PerplexityDefinition(kind="documents", field="text")
        found.append(
            [
                engine.encoder.encode(TEXTS),
                engine.loglikelihood(PAIRS),
                engine.loglikelihood_rolling(TEXTS),
                engine.generate_until([(text, {"max_gen_toks": 5}) for text in TEXTS]),
                score_blocks(engine, blocks, range(len(blocks)), None),
                score_documents(engine, ROWS, range(len(ROWS)), documents, None),
                engine.prompt_ids,
            ]
        )
        assert any("which is left away here" in note for note in engine.notes) == (kind == around)
    assert found[0] == found[1]
    assert len({total for total, _ in found[0][1].responses[:4]}) == 4  # choices are told apart


def test_an_end_that_the_text_itself_holds_stays() -> None:
    encoder = Encoder(byte_tokenizer(around="<s> $A </s>"))
    assert encoder.encode(["a</s>"])["a</s>"][-1] == 2
    assert encoder.encode(["</s>"])["</s>"] == [1, 2]


def test_a_choice_that_holds_nothing_of_its_own_is_still_named() -> None:
    engine = Engine(small_model("llama"), byte_tokenizer(around="$A </s>"))
    with pytest.raises(RequestProblem, match="the choice '' holds no tokens"):
        engine.loglikelihood([("a", "")])


@pytest.mark.parametrize(("bos", "like"), [("never", "$A"), ("always", "<s> $A"), ("tokenizer", None)])
@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
def test_bos_begins_requests_as_asked(around: str, bos: Any, like: str | None) -> None:
    model = small_model("llama")
    asked = Engine(model, byte_tokenizer(around=around), bos=bos)
    plain = Engine(model, byte_tokenizer(around=like or around))
    pairs = [pair for pair in PAIRS if pair[0]]
    assert asked.loglikelihood(pairs) == plain.loglikelihood(pairs)
    requests = [(text, {"max_gen_toks": 5}) for text in TEXTS]
    assert asked.generate_until(requests) == plain.generate_until(requests)


@pytest.mark.parametrize("bos", ["always", "tokenizer", "never"])
def test_a_text_that_holds_bos_gets_no_second_one(bos: Any) -> None:
    assert Encoder(byte_tokenizer(adds_bos=True), bos=bos).encode(["<s>Hello"])["<s>Hello"].count(1) == 1


def test_bos_is_refused_where_the_tokenizer_has_none() -> None:
    with pytest.raises(BadInput, match="bos is 'always', but the tokenizer has no BOS token"):
        Encoder(byte_tokenizer(bos=None), bos="always")


@pytest.mark.parametrize("bos", ["always", "tokenizer", "never"])
@pytest.mark.parametrize("around", ["$A", "<s> $A", "<pad> <s> $A </s>"])
def test_a_prompt_is_encoded_as_in_training_and_a_request_behind_it_has_no_bos(around: str, bos: Any) -> None:
    tokenizer = byte_tokenizer(around=around)
    encoder = Encoder(tokenizer, "A prompt.", bos)
    assert encoder.prompt_ids == prompt_ids(tokenizer, "A prompt.", bos)
    assert encoder.prompt_ids[: len(encoder.begins)] == bos_ids(tokenizer, bos)
    bare = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    assert encoder.behind_prompt(encoder.encode(["Hello"])["Hello"]) == bare
    assert encoder.behind_prompt(encoder.encode(["<s>Hello"])["<s>Hello"]) == bare


@pytest.mark.parametrize("bos", ["never", "always"])
def test_rolling_log_likelihoods_begin_as_asked(bos: Any) -> None:
    model = small_model("llama", max_position_embeddings=32)
    asked = Engine(model, byte_tokenizer(adds_bos=True), bos=bos)
    tokenizer = byte_tokenizer()
    text = "the rain in Spain " * 5
    ids = tokenizer(text)["input_ids"]
    (always,) = Engine(model, tokenizer).loglikelihood_rolling([text]).responses  # BOS once, before the text
    (value,) = asked.loglikelihood_rolling([text]).responses
    if bos == "always":
        assert value == pytest.approx(always)
    else:
        windows = [(ids[:1], ids[1:33])]  # the first token is read and not scored
        assert len(windows[0][1]) == 32
        (first, _) = asked._score_pairs(windows, None).responses[0]
        assert value < first < 0
        assert value != pytest.approx(always)


def too_many(extra: int = 3) -> Any:
    """A tokenizer with tokens beyond the model's rows: ids 263 to 265, where the model has 264."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(extra)])
    return tokenizer


MESSAGE = rf"The tokenizer gives '<extra1>' the id {VOCAB_SIZE}, but the model has {VOCAB_SIZE} rows for tokens \(ids 0 to 263\)"


def test_an_id_without_a_row_is_named_wherever_it_comes_from() -> None:
    model, tokenizer = small_model("llama"), too_many()
    engine = Engine(model, tokenizer)
    assert engine.loglikelihood([("fine <extra0>", " so")])
    for pair in (("bad <extra1>", " so"), ("bad", " <extra1>"), ("", "<extra1>")):
        with pytest.raises(BadInput, match=MESSAGE):
            engine.loglikelihood([("fine", " so"), pair])
    with pytest.raises(BadInput, match=MESSAGE):
        engine.generate_until([("bad <extra1>", {"max_gen_toks": 2})])
    with pytest.raises(BadInput, match=MESSAGE):
        engine.loglikelihood_rolling(["bad <extra1>"])
    with pytest.raises(BadInput, match=MESSAGE):
        token_blocks(engine, [{"text": "some text <extra1> " * 9}], PerplexityDefinition(kind="blocks", field="text", block=16))
    with pytest.raises(BadInput, match=MESSAGE):
        Engine(model, tokenizer, "A prompt <extra1>.")


def test_a_prefix_token_without_a_row_is_named() -> None:
    tokenizer = too_many()
    tokenizer.bos_token = "<extra1>"
    with pytest.raises(BadInput, match=MESSAGE):
        Engine(small_model("llama"), tokenizer).loglikelihood([("", "alone")])


def test_rows_of_a_smaller_output_projection_count_too() -> None:
    import torch

    model = small_model("llama")
    model.lm_head = torch.nn.Linear(32, 200, bias=False)
    with pytest.raises(BadInput, match="but the model has 200 rows for tokens"):
        Engine(model, byte_tokenizer()).loglikelihood([("ä ö ü ÿ 中文", " ü")])
