"""Every length of a grid is compared with its model's context before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from prunebench.evaluation.catalogue import known_tasks
from prunebench.experiments.checks.lengths import LONGEST_ANSWER, answer_tokens, check_lengths
from prunebench.experiments.config import GridConfig
from prunebench.experiments.plan import plan_grid
from prunebench.methods.compresso.prompts import prompt_text
from prunebench.models.checkpoint import save_pruned
from prunebench.models.errors import BadInput
from prunebench.models.loading import ModelSpec, load_config
from prunebench.models.special_tokens import prompt_ids
from prunebench.run_all import main
from tests.experiments.support import Bench, grid_config, save_tiny_model

CONTEXT = 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("lengths") / "small", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def small_with_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("lengths") / "with_bos", max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(folder)
    return folder


def check(model: Path | str, until: Any = "record", **changes: Any) -> None:
    check_lengths(plan_grid(GridConfig.model_validate(grid_config(model, **changes))), until)  # type: ignore[arg-type]


def refusal(model: Path | str, **changes: Any) -> str:
    with pytest.raises(BadInput) as caught:
        check(model, **changes)
    return str(caught.value)


def grid(method: Any, recovery: Any = "none") -> dict[str, Any]:
    return {"method": [method], "recovery": [recovery]}


def learner(name: str, **config: Any) -> dict[str, Any]:
    return {**grid({"name": name, "config": config})}


def recovery(max_len: int) -> dict[str, Any]:
    return grid("magnitude", {"name": "lora", "config": {"text": {"source": "c4", "max_len": max_len}}})


FITS: list[dict[str, Any]] = [
    {"grid": grid("flap"), "calibration": {"seq_len": 64}},
    {"grid": grid("magnitude"), "calibration": {"seq_len": 128}},  # reads no calibration text
    {"grid": recovery(64)},
    {"grid": learner("compresso", text={"source": "c4", "max_len": 64}, prompt="none"), "calibration": {"seq_len": 64}},
    {"grid": learner("compresso", text={"source": "calibration", "max_len": 512}, prompt="none"), "calibration": {"seq_len": 64}},
    {"grid": learner("nuteprune", text={"max_len": 64}, finetune_epochs=0), "calibration": {"seq_len": 64}},
    {"efficiency": {"enabled": True, "prompt_tokens": 60, "new_tokens": 4}},
    {"evaluation": {"prompt": "Think."}},
]


@pytest.mark.parametrize("changes", FITS)
def test_what_fits_is_accepted(small: Path, changes: dict[str, Any]) -> None:
    check(small, **changes)


SEQ_LEN_64: dict[str, Any] = {"seq_len": 64}
TOO_LONG: list[tuple[dict[str, Any], str]] = [
    ({"grid": grid("flap")}, "calibration.seq_len is 128"),
    ({"grid": grid("wanda_sp"), "calibration": {"seq_len": 65}}, "calibration.seq_len is 65"),
    ({"grid": recovery(65)}, "text.max_len of recovery lora is 65"),
    ({"grid": learner("compresso", prompt="none"), "calibration": SEQ_LEN_64}, "text.max_len of method compresso is 1024"),
    ({"grid": learner("compresso", text={"source": "self", "max_len": 99}, prompt="none"), "calibration": SEQ_LEN_64}, "is 99"),
    ({"grid": learner("nuteprune"), "calibration": SEQ_LEN_64}, "text.max_len of method nuteprune is 512"),
    ({"grid": learner("nuteprune", text={"max_len": 64}), "calibration": SEQ_LEN_64}, "finetune_text.max_len of method nuteprune is 512"),
    ({"efficiency": {"enabled": True}}, "efficiency.prompt_tokens + efficiency.new_tokens is 144"),
    ({"efficiency": {"enabled": True, "prompt_tokens": 60, "new_tokens": 5}}, "efficiency.prompt_tokens + efficiency.new_tokens is 65"),
]


@pytest.mark.parametrize(("changes", "length"), TOO_LONG)
def test_a_setting_that_is_too_long_is_named(small: Path, changes: dict[str, Any], length: str) -> None:
    sentence = refusal(small, **changes)
    assert length in sentence
    assert sentence.endswith(f"but model {small} has a context of 64 tokens; give at most 64.")


@pytest.mark.parametrize(("name", "length"), [("perplexity_128", 128), ("perplexity_2048", 2048)])
def test_a_perplexity_block_that_is_too_long_is_named_with_its_protocol(small: Path, name: str, length: int) -> None:
    sentence = refusal(small, protocols=[name])
    assert f"in protocol {name} is {length}, but model" in sentence
    assert sentence.endswith("leave the protocol out.")


def test_the_answer_of_a_generative_task_needs_room(small: Path) -> None:
    assert "a token of text + the answer of task bbh_cot in protocol bbh_3shot_cot is 1025" in refusal(small, protocols=["bbh_3shot_cot"])
    assert "is 257" in refusal(small, protocols=["bbh_3shot_direct"])
    check(small, protocols=["mmlu_generative", "bbh_generative_compresso", "mmlu_5shot", "commonsense_small"])


def test_no_known_task_asks_for_a_longer_answer() -> None:
    assert max(answer_tokens(name) for name, task in known_tasks().items() if task.perplexity is None) == LONGEST_ANSWER


def test_a_prompt_counts_with_what_stands_behind_it(tmp_path: Path, small: Path, small_with_bos: Path) -> None:
    """A prompt of as many tokens as there is room for beside a text of two, and of one more."""
    tokenizer = AutoTokenizer.from_pretrained(small)
    fits = "Q" * 62
    assert len(prompt_ids(tokenizer, fits)) == 62
    check(small, evaluation={"prompt": fits})
    assert "evaluation.prompt + a text of 2 tokens is 65" in refusal(small, evaluation={"prompt": fits + "Q"})
    check(small_with_bos, evaluation={"prompt": "Q" * 61})
    assert "evaluation.prompt + a text of 2 tokens is 65" in refusal(small_with_bos, evaluation={"prompt": fits})
    assert refusal(small, evaluation={"prompt": fits + "Q"}).endswith("give a shorter prompt.")
    longer = save_tiny_model(tmp_path / "longer", max_position_embeddings=140)
    check(longer, protocols=["perplexity_128"], evaluation={"prompt": "Q" * 12})
    sentence = refusal(longer, protocols=["perplexity_128"], evaluation={"prompt": "Q" * 13})
    assert "evaluation.prompt (13 tokens) + a block of task wikitext2_128 in protocol perplexity_128 is 141" in sentence


def test_a_prompt_counts_as_it_will_be_scored(small: Path, small_with_bos: Path) -> None:
    check(small_with_bos, evaluation={"prompt": "Q" * 62, "bos": "never"})
    assert "is 65" in refusal(small, evaluation={"prompt": "Q" * 62, "bos": "always"})


def test_a_chat_template_that_the_tokenizer_lacks_is_refused_before_anything_runs(small: Path) -> None:
    assert "the tokenizer has no chat template" in refusal(small, evaluation={"chat_template": True})
    check(small, "prune", evaluation={"chat_template": True})  # nothing is evaluated


@pytest.mark.parametrize("adds_bos", [False, True])
def test_compressos_prompt_counts_with_its_examples(small: Path, small_with_bos: Path, adds_bos: bool) -> None:
    """BOS once: the examples behind a prompt have none."""
    folder = small_with_bos if adds_bos else small
    prompt = len(AutoTokenizer.from_pretrained(folder)(prompt_text("training"))["input_ids"])
    assert prompt > CONTEXT
    config = learner("compresso", text={"source": "c4", "max_len": 32})
    sentence = refusal(folder, grid=config, calibration=SEQ_LEN_64)
    assert f"prompt + text.max_len of method compresso is {prompt + 32 - adds_bos}, but" in sentence


def test_a_cell_that_is_only_pruned_needs_no_room_for_what_is_not_run(small: Path) -> None:
    changes: dict[str, Any] = {"protocols": ["perplexity_2048"], "efficiency": {"enabled": True}}
    check(small, "prune", **changes)
    assert "2048" in refusal(small, **changes)


@pytest.mark.parametrize("where", ["calibration", "method", "recovery"])
def test_bos_always_is_refused_for_a_tokenizer_without_a_bos_token(tmp_path: Path, where: str) -> None:
    folder = save_tiny_model(tmp_path / "bare")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    text = {"source": "c4", "max_len": 64, "bos": "always"}
    changes: dict[str, Any] = {
        "calibration": {"grid": grid("flap"), "calibration": {"bos": "always"}},
        "method": {"grid": learner("compresso", text=text, prompt="none")},
        "recovery": {"grid": grid("magnitude", {"name": "lora", "config": {"text": text}})},
    }[where]
    setting = {"calibration": "calibration.bos", "method": "text.bos of method compresso", "recovery": "text.bos of recovery lora"}[where]
    assert refusal(folder, **changes) == (
        f"{setting} is 'always', but the tokenizer of model {folder} has no BOS token; use 'tokenizer' or 'never'."
    )


def test_the_embedded_model_has_its_own_context() -> None:
    embedded = ModelSpec(name="embedded:smollm2-135m-instruct")
    config = load_config(embedded)
    assert config is not None
    assert config.max_position_embeddings == 8192
    check(embedded.name, grid=grid("flap"), calibration={"seq_len": 8192}, protocols=["perplexity_2048"])
    assert "has a context of 8192 tokens" in refusal(embedded.name, grid=grid("flap"), calibration={"seq_len": 8193})


def test_a_pruned_folder_keeps_its_context(small: Path, tmp_path: Path) -> None:
    from prunebench.models.anatomy import Anatomy
    from prunebench.models.checkpoint import load_pruned
    from prunebench.models.slice import slice_model
    from prunebench.models.tiny import random_masks

    model, tokenizer = load_pruned(small)
    save_pruned(slice_model(model, random_masks(Anatomy.from_model(model))), tokenizer, tmp_path / "pruned", {})
    assert "has a context of 64 tokens" in refusal(tmp_path / "pruned", grid=grid("flap"))


@pytest.mark.parametrize("verb", ["run", "plan", "validate", "prune"])
def test_every_verb_that_looks_ahead_refuses_in_one_sentence(
    bench: Bench, small: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    bench.model = small
    bench.configure(grid={"method": ["flap"]})
    before = sorted(bench.folder.rglob("*"))
    assert bench(verb) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"error: calibration.seq_len is 128, but model {small} has a context of 64 tokens; give at most 64."
    assert sorted(bench.folder.rglob("*")) == before


def test_evaluate_of_one_model_refuses_too(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", str(small), "--protocol", "perplexity_128"]) == 2
    assert "a block of task wikitext2_128 in protocol perplexity_128 is 128" in capsys.readouterr().err


def test_ids_beyond_the_embedding_fail_the_cell_in_one_sentence(bench: Bench) -> None:
    """A tokenizer that goes with another, larger model."""
    save_tiny_model(bench.model)
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    tokenizer.add_tokens([f"word{i}" for i in range(31)], special_tokens=True)  # which loading lets through
    tokenizer.save_pretrained(bench.model)
    bench.configure(grid={"method": ["flap"], "dense": False}, calibration={"source": "c4", "num_samples": 4, "seq_len": 16})
    assert bench("run") == 1
    reason = bench.record("flap")["run"]["reason"]
    assert reason.startswith("prune: the calibration samples hold the token id 3")
    assert "but the model's embedding has 300 rows; use the tokenizer that the model was trained with" in reason


@pytest.mark.parametrize(("bos", "words"), [("tokenizer", "with BOS"), ("never", "without BOS")])
def test_a_record_names_the_choice_of_bos(bench: Bench, small_with_bos: Path, bos: str, words: str) -> None:
    bench.model = small_with_bos
    text = {"source": "c4", "max_len": 64, "bos": bos}
    bench.configure(
        grid={**grid("flap", {"name": "lora", "config": {"text": text, "token_budget": 300}}), "dense": False},
        calibration={"source": "c4", "num_samples": 4, "seq_len": 64, "bos": bos},
    )
    assert bench("run") == 0
    data = {one["purpose"]: one["source"] for one in bench.record("flap")["provenance"]["data"]}
    assert f"4 samples of 64 tokens {words}" in data["calibration"]
    assert words in data["recovery"]
