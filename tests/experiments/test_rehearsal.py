"""A tiny model of the same class and config goes the whole road first: found before any work, not after pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from prunebench.experiments.checks import rehearsal
from prunebench.experiments.checks.rehearsal import rehearse, shrunk, tiny_copy
from prunebench.models import modeling_pruned
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import UnsupportedModel
from prunebench.models.loading import ModelSpec, check_loads
from prunebench.models.tiny import FAMILIES
from tests.experiments.support import Bench, save_tiny_model

ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def save(folder: Path, family: str, **settings: Any) -> ModelSpec:
    """A random model of a family that is none of ours, in a folder with a tokenizer."""
    save_tiny_model(folder)
    common = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4}
    common |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**(common | settings))
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return ModelSpec(name=str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_ours_passes(family: str, tmp_path: Path) -> None:
    rehearse(ModelSpec(name=str(save_tiny_model(tmp_path / "model", family))))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("SmolLM3", {}),
        ("Granite", {}),
        ("Glm4", {"head_dim": 16}),
        ("Exaone4", {}),
        ("SeedOss", {"head_dim": 16}),
        ("Olmo3", {}),
        ("Qwen3", {"head_dim": 32}),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "linear"}}),
    ],
)
def test_families_that_nobody_named_pass(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    rehearse(save(tmp_path / "model", family, **settings))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("Helium", {"head_dim": 16}, "can't be pruned, only evaluated: without some of its heads and channels it can't be rebuilt"),
        ("Ministral3", {"head_dim": 16}, "can't be rebuilt .*per-layer attribute"),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}, "can't be rebuilt"),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, "can't be rebuilt"),
        ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}, "final norm"),
        ("Mixtral", {}, "MixtralSparseMoeBlock"),
    ],
)
def test_a_model_that_would_fail_after_pruning_is_refused_before(
    family: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        rehearse(save(tmp_path / "model", family, **settings))


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("_scale_eps", "without some of its residual dimensions, gives other logits once it is sliced"),
        ("sublayer_norms", "once it is sliced|can't be rebuilt"),
    ],
)
def test_slicing_that_changes_what_a_model_computes_is_found(
    broken: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(name=str(save_tiny_model(tmp_path / "model", "gemma2", seed=7, rms_norm_eps=0.1)))
    replacements = {"_scale_eps": lambda norm, factor: None, "sublayer_norms": lambda layer: {"self_attn": [], "mlp": []}}
    monkeypatch.setattr(modeling_pruned, broken, replacements[broken])
    rehearsal._rehearse_config.cache_clear()
    with pytest.raises(UnsupportedModel, match=what):
        rehearse(spec)


def test_the_tiny_copy_keeps_the_head_size_and_one_layer_of_each_kind(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"] * 2
    folder = save_tiny_model(tmp_path / "m", "gemma3", num_hidden_layers=7, layer_types=kinds, num_attention_heads=8, num_key_value_heads=4)
    empty = check_loads(ModelSpec(name=str(folder)))
    assert empty is not None
    small = shrunk(empty.config, is_narrow=True)
    assert small.layer_types == ["sliding_attention"] * 3 + ["full_attention"]
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim, small.hidden_size) == (4, 2, 16, 16)
    assert Anatomy.from_model(tiny_copy(empty)).layer_sizes(0) == (4, 2, 48)


def test_a_big_shape_is_rehearsed_small() -> None:
    import torch

    config = transformers.LlamaConfig(hidden_size=8192, num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672)
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 80}))
    assert sum(p.numel() for p in tiny_copy(empty).parameters()) < 40_000_000


@pytest.mark.parametrize("verb", ["validate", "plan", "prune", "run"])
def test_every_verb_that_leads_to_pruning_refuses_and_writes_nothing(verb: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    save(bench.model, "Helium", head_dim=16)
    assert bench(verb) == 2
    assert "can't be pruned, only evaluated" in capsys.readouterr().err
    assert not bench.out.exists()


def test_a_model_that_can_not_be_pruned_is_still_evaluated(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    save(bench.model, "Helium", head_dim=16)
    bench.configure(grid={"method": []})
    assert bench("run") == 0
    assert bench.record("dense")["run"]["status"] == "done"


def test_code_that_comes_with_the_checkpoint_is_evaluated_where_it_is_allowed_and_never_pruned(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((bench.model / "config.json").read_text())
    code = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    config |= {"model_type": "mine_llama", "architectures": ["MineForCausalLM"], "auto_map": code}
    (bench.model / "config.json").write_text(json.dumps(config))
    (bench.model / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine_llama'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    assert bench("validate") == 2
    assert "allow it with --trust-remote-code" in capsys.readouterr().err
    assert bench("validate", "--trust-remote-code") == 2
    assert "can't be pruned, only evaluated" in capsys.readouterr().err
    bench.configure(grid={"method": []})
    assert bench("run", "--trust-remote-code") == 0
