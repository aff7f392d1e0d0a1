"""The definitions of the evaluation protocol's perplexities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prunebench.evaluation import evaluate, format_table, known_protocols
from prunebench.evaluation.aggregate import perplexity_estimate
from prunebench.evaluation.catalogue import PerplexityDefinition
from prunebench.evaluation.engine.engine import Engine
from prunebench.evaluation.perplexity import score_blocks, token_blocks
from prunebench.models.errors import BadInput
from tests.evaluation.conftest import VOCAB_SIZE, byte_tokenizer, small_model

TEXT = [{"text": f"Line {i} of the text, with some words in it."} for i in range(40)]


def definition(block: int) -> PerplexityDefinition:
    return PerplexityDefinition(kind="blocks", field="text", join="\n\n", block=block)


def perplexity(model: Any, tokenizer: Any, rows: list[dict[str, str]], block: int, **options: Any) -> float:
    engine = Engine(model, tokenizer, **options)
    blocks = token_blocks(engine, rows, definition(block))
    outcomes = score_blocks(engine, blocks, range(len(blocks)), None)
    return perplexity_estimate(
        [outcome.metrics["token_perplexity"] for outcome in outcomes], [outcome.weight for outcome in outcomes]
    ).value


def naive(model: Any, block: int, before: list[int]) -> float:
    """One pass a block: its tokens from the second on, given `before` and those before them."""
    ids = byte_tokenizer()("\n\n".join(row["text"] for row in TEXT))["input_ids"]
    losses = []
    for start in range(0, len(ids) - block + 1, block):
        piece = torch.tensor([before + ids[start : start + block]])
        with torch.no_grad():
            logits = model(piece, use_cache=False).logits[0, len(before) : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, piece[0, len(before) + 1 :]).item())
    assert len(losses) == len(ids) // block
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize(
    ("around", "bos", "before"),
    [
        ("$A", "tokenizer", []),
        ("$A", "never", []),
        ("$A", "always", [1]),
        ("<s> $A", "tokenizer", [1]),
        ("<s> $A", "never", []),
        ("<s> $A", "always", [1]),
        ("$A </s>", "tokenizer", []),
        ("<pad> <s> $A </s>", "tokenizer", [0, 1]),
    ],
)
@pytest.mark.parametrize("block", [16, 100])
def test_blocks_equal_a_naive_loop(block: int, around: str, bos: Any, before: list[int]) -> None:
    model = small_model("llama").double()
    tokenizer = byte_tokenizer(around=around)
    assert perplexity(model, tokenizer, TEXT, block, bos=bos) == pytest.approx(naive(model, block, before), rel=1e-6)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_blocks_behind_a_prompt_begin_as_the_prompt_does(adds_bos: bool) -> None:
    model = small_model("llama").double()
    tokenizer = byte_tokenizer(adds_bos=adds_bos)
    before = tokenizer("A prompt.")["input_ids"]
    assert perplexity(model, tokenizer, TEXT, 16, prompt="A prompt.") == pytest.approx(naive(model, 16, before), rel=1e-6)


def test_a_block_as_long_as_the_context_fits_behind_bos() -> None:
    """The last token of a block is never read, so that BOS takes its place."""
    model = small_model("llama", max_position_embeddings=64).double()
    assert perplexity(model, byte_tokenizer(adds_bos=True), TEXT, 64) == pytest.approx(naive(model, 64, [1]), rel=1e-6)
    with pytest.raises(BadInput, match="Blocks of 64 tokens don't fit the model's context of 64 tokens"):
        perplexity(model, byte_tokenizer(around="<pad> <s> $A"), TEXT, 64)


FORMS = [
    ("$A", "tokenizer", "without BOS", "with BOS '<s>'"),
    ("<s> $A", "tokenizer", "with BOS '<s>'", "with BOS '<s>'"),
    ("<s> $A", "never", "without BOS", "without BOS"),
    ("$A", "always", "with BOS '<s>'", "with BOS '<s>'"),
]


@pytest.mark.parametrize(("around", "bos", "blocks", "documents"), FORMS)
def test_a_perplexity_says_whether_bos_stood_before_it(tmp_path: Path, around: str, bos: Any, blocks: str, documents: str) -> None:
    for name, key in (("wikitext2_raw/test", "text"), ("ptb/validation", "sentence"), ("lambada_openai/test", "text")):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({key: row["text"]}) + "\n" for row in TEXT))
    protocols = ["perplexity_128", "perplexity_passages"]
    cut, alone = evaluate(small_model("llama"), byte_tokenizer(around=around), protocols, data_dir=tmp_path, limit=3, bos=bos)
    assert cut.definition.endswith(f" Here: blocks {blocks}.")
    assert all(task.definition.startswith(f"token_perplexity ({blocks}), ") for task in cut.tasks)
    assert alone.definition.endswith(f" Here: documents {documents}.")
    assert alone.tasks[0].definition.startswith(f"token_perplexity ({documents}), ")
    table = format_table([cut, alone])
    assert cut.definition in table
    assert alone.definition in table


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tokenizer: Any) -> None:
    model = small_model("llama")
    model.lm_head.weight.data.zero_()
    assert perplexity(model, tokenizer, TEXT, 32) == pytest.approx(VOCAB_SIZE, rel=1e-6)


def test_doubling_the_text_leaves_the_perplexity_unchanged(tokenizer: Any) -> None:
    model = small_model("llama")
    block = 32
    rows = [{"text": "abcdefgh" * 12}]  # no joint: every block holds the same period
    once = perplexity(model, tokenizer, rows, block)
    twice = perplexity(model, tokenizer, [{"text": rows[0]["text"] * 2}], block)
    assert twice == pytest.approx(once, rel=1e-9)


def test_the_standard_error_is_that_of_the_mean_loss_over_blocks() -> None:
    logs, weights = [-10.0, -14.0, -12.0, -9.0], [5.0, 5.0, 5.0, 5.0]
    estimate = perplexity_estimate(logs, weights)
    losses = torch.tensor([-log / 5 for log in logs], dtype=torch.float64)
    assert estimate.value == pytest.approx(math.exp(losses.mean()))
    assert estimate.stderr == pytest.approx(estimate.value * float(losses.std()) / 2)


def test_a_text_shorter_than_a_block_is_refused(tokenizer: Any) -> None:
    engine = Engine(small_model("llama"), tokenizer)
    with pytest.raises(BadInput, match="fewer than one block of 200"):
        token_blocks(engine, [{"text": "short"}], definition(200))


def test_a_block_longer_than_the_context_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="don't fit the model's context of 64"):
        token_blocks(Engine(small_model("llama", max_position_embeddings=64), tokenizer), TEXT, definition(128))


def test_wikitext_and_ptb_are_scored_on_the_splits_that_papers_use(tmp_path: Path, tokenizer: Any) -> None:
    for name, key in (("wikitext2_raw/test.jsonl", "text"), ("ptb/validation.jsonl", "sentence")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text("".join(json.dumps({key: row["text"]}) + "\n" for row in TEXT))
    (result,) = evaluate(small_model("llama"), tokenizer, ["perplexity_128"], data_dir=tmp_path)
    assert [(task.task, task.split) for task in result.tasks] == [("wikitext2_128", "test"), ("ptb_128", "validation")]
    assert result.mean is None
    assert "127 predicted tokens" in known_protocols()["perplexity_128"].definition
    assert not result.tasks[0].higher_is_better


def test_passages_are_scored_alone_after_the_prefix_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    path = tmp_path / "lambada_openai" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXT[:5]))
    model = small_model("llama")
    (result,) = evaluate(model, tokenizer, ["perplexity_passages"], data_dir=tmp_path)
    total, count = 0.0, 0
    for row in TEXT[:5]:
        ids = [tokenizer.bos_token_id, *tokenizer(row["text"])["input_ids"]]
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)
        total += float(logs[range(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
    assert result.tasks[0].value == pytest.approx(math.exp(-total / count), rel=1e-5)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_without_bos_the_first_token_of_a_document_is_not_scored(tmp_path: Path, adds_bos: bool) -> None:
    path = tmp_path / "lambada_openai" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXT[:5]))
    model = small_model("llama")
    (result,) = evaluate(model, byte_tokenizer(adds_bos=adds_bos), ["perplexity_passages"], data_dir=tmp_path, bos="never")
    total, count = 0.0, 0
    for row in TEXT[:5]:
        ids = byte_tokenizer()(row["text"])["input_ids"]
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)
        total += float(logs[range(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
    assert result.tasks[0].value == pytest.approx(math.exp(-total / count), rel=1e-5)


def test_a_document_of_which_no_token_can_be_scored_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lambada_openai" / "test.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "a text"}\n{"text": "x"}\n')
    with pytest.raises(BadInput, match=r"Task 'passages', item 1: the text holds 1 tokens, too few to score one"):
        evaluate(small_model("llama"), byte_tokenizer(), ["perplexity_passages"], data_dir=tmp_path, bos="never")


@pytest.mark.slow
def test_longer_blocks_have_a_lower_perplexity_on_a_trained_model(embedded: Any) -> None:
    from prunebench.evaluation.catalogue import known_tasks
    from prunebench.evaluation.sources import load_task_data

    rows = load_task_data(known_tasks()["passages"], "", ("embedded",), None, 0).rows[:5]
    short, long = (perplexity(embedded.model, embedded.tokenizer, rows, block) for block in (16, 128))
    assert long < short < VOCAB_SIZE * 10
