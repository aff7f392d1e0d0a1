"""A tiny model of the same class and config goes the whole road first: found before any work, not after pruning."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prunebench.experiments.checks import rehearsal
from prunebench.experiments.checks.rehearsal import rehearse, uneven_masks
from prunebench.experiments.checks.removals import ALL_KINDS, Kind
from prunebench.experiments.checks.tiny_copy import shrunk, some_layers, tiny_copy
from prunebench.models import modeling_pruned
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import BadInput, UnsupportedModel
from prunebench.models.loading import ModelSpec, check_loads
from prunebench.models.masks import Masks
from prunebench.models.tiny import FAMILIES, tiny_model
from tests.experiments.support import Bench, save_tiny_model

TOKENS = torch.arange(24)[None]
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
        ("Helium", {"head_dim": 16}, "can't be pruned, only evaluated: without some of its attention heads it can't be rebuilt"),
        ("Ministral3", {"head_dim": 16}, "without some of its attention heads it can't be loaded again .*per-layer attribute"),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}, "it can't be loaded again"),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, "it can't be loaded again"),
        ("Llama", {"rope_parameters": {**ROPE, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}, "it can't"),
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
        ("_scale_eps", "without some of its residual dimensions it gives other logits once it is sliced"),
        ("sublayer_norms", "without some of its residual dimensions it gives other logits|without some of its sub-layers it can't"),
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
    small = shrunk(empty.config)
    assert small.layer_types == ["sliding_attention"] * 4 + ["full_attention"]
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim, small.hidden_size) == (4, 2, 16, 16)
    assert Anatomy.from_model(tiny_copy(empty, TOKENS)).layer_sizes(0) == (4, 2, 48)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"layer_types": ["a", "a", "a", "a", "b", "a", "c", "b"], "eos_token_id": [1, 2, 3, 4, 5, 6, 7, 8]}, [0, 1, 2, 3, 4, 6]),
        ({"layer_types": ["a"] * 8, "no_rope_layers": [1] * 7 + [0]}, [0, 1, 2, 3, 7]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_every_list_with_an_entry_for_each_layer_tells_kinds_of_layers_apart(settings: dict[str, Any], layers: list[int]) -> None:
    assert some_layers(settings, 8) == layers
    assert some_layers({}, 2) == [0, 1]


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-2-7B": ("Llama", {}),
    "Llama-3-70B": ("Llama", {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80}),
    "Qwen2.5-7B": ("Qwen2", {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28}),
    "Qwen3-4B, heads wider than the stream": (
        "Qwen3",
        {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 36},
    ),
    "one key/value head for 71": ("Llama", {"hidden_size": 4544, "num_attention_heads": 71, "num_key_value_heads": 1}),
    "a width that heads don't divide": (
        "Mistral",
        {"hidden_size": 5000, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_big_shapes_are_rehearsed_small_and_none_is_refused_for_rounding(name: str) -> None:
    family, settings = SHAPES[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.device("meta"):
        empty = getattr(transformers, f"{family}ForCausalLM")(config)
    model = tiny_copy(empty, TOKENS)
    anatomy, real = Anatomy.from_model(model), Anatomy.from_model(empty)
    assert sum(p.numel() for p in model.parameters()) < 6_000_000
    assert anatomy.layers[0].attention is not None
    assert real.layers[0].attention is not None
    assert anatomy.layers[0].attention.head_dim == real.layers[0].attention.head_dim
    assert _order(anatomy) == _order(real)
    rehearsal._Road(model, anatomy, has_own_code=False).go(ALL_KINDS)


def _order(anatomy: Anatomy) -> int:
    """1 where all heads together are wider than the residual stream, 0 where as wide, -1 where narrower."""
    attention = anatomy.layers[0].attention
    assert attention is not None
    difference = attention.num_q_heads * attention.head_dim - anatomy.hidden_size
    return (difference > 0) - (difference < 0)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.BIASES])
@pytest.mark.parametrize("family", ["llama", "llama_mqa", "gemma3"])
def test_masks_of_a_rehearsal_remove_what_they_say_and_unevenly(family: str, kind: Kind) -> None:
    anatomy = Anatomy.from_model(tiny_model(family))
    masks = uneven_masks(anatomy, frozenset({kind}))
    whole = Masks.of(anatomy)
    gone = {
        Kind.HEADS: any(not mask.all() for mask, on in zip(masks.q_heads, masks.attn, strict=True) if on),
        Kind.CHANNELS: any(not mask.all() for mask, on in zip(masks.ffn, masks.mlp, strict=True) if on),
        Kind.SUBLAYERS: not masks.attn.all() and not masks.mlp.all(),
        Kind.WIDTH: not masks.hidden.all(),
    }
    assert {one for one, removed in gone.items() if removed} == {kind}
    assert masks != whole
    if kind in (Kind.HEADS, Kind.CHANNELS):
        kept = [int(mask.sum()) for mask in (masks.q_heads if kind is Kind.HEADS else masks.ffn)]
        assert len(set(kept)) > 1, "every layer is cut alike"
    if kind is Kind.HEADS and family != "llama_mqa":
        assert len({int(mask.sum()) for mask in masks.kv_groups}) > 1


@pytest.mark.parametrize("methods", [["block_influence"], [{"name": "llm_pruner", "config": {"strategy": "layer"}}], ["wanda"]])
def test_a_model_is_rehearsed_on_what_the_methods_of_the_grid_remove(methods: list[Any], bench: Bench) -> None:
    save(bench.model, "Helium", head_dim=16)
    calibration = {"source": "c4", "num_samples": 2, "seq_len": 8}
    bench.configure(grid={"method": methods, "dense": False, "sparsity": [0.4]}, calibration=calibration)
    assert bench("run") == 0, "whole sub-layers and channels can be taken from this model"


def test_the_methods_that_a_model_can_not_take_are_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    save(bench.model, "Helium", head_dim=16)
    bench.configure(grid={"method": ["block_influence", "flap", "magnitude"]}, calibration={"source": "c4", "num_samples": 2, "seq_len": 8})
    assert bench("validate") == 2
    said = capsys.readouterr().err
    assert "without some of its attention heads it can't be rebuilt" in said
    assert said.rstrip().endswith("leave out flap and magnitude, which remove these.")


def test_a_cache_that_counts_wrongly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(name=str(save_tiny_model(tmp_path / "model", "mistral", seed=3)))

    def without_counting(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden_states.new_zeros(hidden_states.shape), None

    monkeypatch.setattr(modeling_pruned.AbsentAttention, "forward", without_counting)
    rehearsal._rehearse_config.cache_clear()
    with pytest.raises(UnsupportedModel, match=r"without some of its sub-layers it (generates other text|can't run)"):
        rehearse(spec)


@pytest.mark.parametrize("place", ["gone", "gone/for/good"])
def test_a_temporary_folder_that_can_not_be_written_is_not_the_model_s_fault(place: str, tmp_path: Path, monkeypatch: Any) -> None:
    spec = ModelSpec(name=str(save_tiny_model(tmp_path / "model", seed=5)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / place))
    rehearsal._rehearse_config.cache_clear()
    with pytest.raises(BadInput, match="set TMPDIR") as caught:
        rehearse(spec)
    assert not isinstance(caught.value, UnsupportedModel)


@pytest.mark.parametrize("verb", ["validate", "plan", "prune", "run"])
def test_every_verb_that_leads_to_pruning_refuses_and_writes_nothing(verb: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    save(bench.model, "Helium", head_dim=16)
    assert bench(verb) == 2
    assert "can't be pruned, only evaluated" in capsys.readouterr().err
    assert not bench.out.exists()


@pytest.mark.parametrize(
    ("family", "settings", "blocks"),
    [("Helium", {"head_dim": 16}, True), ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}, False), ("Mixtral", {}, False)],
)
def test_a_model_that_can_not_be_pruned_is_still_evaluated(family: str, settings: dict[str, Any], blocks: bool, bench: Bench) -> None:
    save(bench.model, family, **settings)
    bench.configure(grid={"method": []})
    assert bench("plan") == 0
    assert bench("run") == 0
    assert bench.record("dense")["run"]["status"] == "done"
    metrics = bench.record("dense")["metrics"]
    assert metrics["params_total"] > 50_000
    assert (metrics["params_blocks"] is not None) == bool(metrics["shapes"]) == blocks


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
    assert "class MineForCausalLM comes with the checkpoint, and its pruned copy can't be loaded again" in capsys.readouterr().err
    bench.configure(grid={"method": []})
    assert bench("run", "--trust-remote-code") == 0
