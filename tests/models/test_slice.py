"""Masked and sliced models compute the same, for every family and every kind of unit."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.models import slice as slicing
from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.errors import InvalidMasks
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.masks import Masks
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks, random_tokens, tiny_model

KINDS = {
    "heads": {"heads": True, "channels": False},
    "channels": {"heads": False, "channels": True},
    "hidden": {"heads": False, "channels": False, "hidden": True},
    "sublayers": {"heads": False, "channels": False, "sublayers": True},
    "everything": {"hidden": True, "sublayers": True},
}


def relative_difference(left, right):
    return float((left - right).abs().max() / left.abs().max())


@torch.no_grad()
def masked_logits(model, masks, tokens):
    with apply_masks(model, Anatomy.from_model(model), masks):
        return model(tokens).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_masked_logits_equal_sliced_logits(family, kind):
    model, tokens = tiny_model(family), random_tokens()
    for seed in range(3):
        masks = random_masks(Anatomy.from_model(model), seed=seed, **KINDS[kind])
        masked = masked_logits(model, masks, tokens)
        assert relative_difference(masked, model(tokens).logits) > 1e-3, "nothing was removed: the test could not fail"
        assert relative_difference(masked, slice_model(model, masks)(tokens).logits) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count_equals_masks_and_saved_tensors(family, tmp_path):
    model = tiny_model(family)
    anatomy = Anatomy.from_model(model)
    assert anatomy.dense_params == count_params(model)
    masks = random_masks(anatomy, seed=1, hidden=True, sublayers=True)
    pruned = slice_model(model, masks)
    save_pruned(pruned, None, tmp_path / "pruned", {})
    with safe_open(tmp_path / "pruned" / "model.safetensors", "pt") as file:
        saved = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert masks.count(anatomy) == count_params(pruned) == Anatomy.from_model(pruned).dense_params
    assert saved == masks.count(anatomy).total


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reloaded_model_gives_equal_logits(family, tmp_path):
    model, tokens = tiny_model(family), random_tokens()
    pruned = slice_model(model, random_masks(Anatomy.from_model(model), seed=2, hidden=True, sublayers=True))
    save_pruned(pruned, None, tmp_path / "pruned", {})
    reloaded, _ = load_pruned(tmp_path / "pruned", with_tokenizer=False)
    assert torch.equal(reloaded(tokens).logits, pruned(tokens).logits)


PLAIN_RELOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder + "/pruned", trust_remote_code=True)
    case = torch.load(folder + "/case.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(model(case["tokens"]).logits, case["logits"]), folder
        assert torch.equal(model.generate(case["tokens"], max_new_tokens=4, do_sample=False), case["generated"]), folder
assert not [name for name in sys.modules if name.split(".")[0] == "prunebench"]
print("equal")
"""


@torch.no_grad()
def test_plain_transformers_loads_pruned_folders_without_prunebench(tmp_path):
    folders, tokens = [], random_tokens()
    for family in FAMILIES:
        model = tiny_model(family)
        pruned = slice_model(model, random_masks(Anatomy.from_model(model), hidden=True, sublayers=True))
        folder = tmp_path / family
        save_pruned(pruned, None, folder / "pruned", {})
        generated = pruned.generate(tokens, max_new_tokens=4, do_sample=False)
        torch.save({"tokens": tokens, "logits": pruned(tokens).logits, "generated": generated}, folder / "case.pt")
        folders.append(str(folder))
    script = tmp_path / "reload.py"
    script.write_text(PLAIN_RELOAD)
    result = subprocess.run(
        [sys.executable, "-I", str(script), *folders],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "equal"


def test_config_writes_layer_shapes_as_transformers_does(tmp_path):
    model = tiny_model("llama")
    masks = random_masks(Anatomy.from_model(model), sublayers=True)
    save_pruned(slice_model(model, masks), None, tmp_path / "pruned", {"why": "test"})
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["per_layer_config"]["0"]["skip"] == ["self_attn"]
    assert config["per_layer_config"]["2"]["intermediate_size"] == int(masks.ffn[2].sum())
    assert config["model_type"] == "llama"
    assert json.loads((tmp_path / "pruned" / "prunebench.json").read_text()) == {"why": "test"}


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "phi3"])
@torch.no_grad()
def test_a_pruned_model_can_be_pruned_again(family):
    model, tokens = tiny_model(family), random_tokens()
    once = slice_model(model, random_masks(Anatomy.from_model(model), seed=3, hidden=True))
    masks = random_masks(Anatomy.from_model(once), seed=5, hidden=True, sublayers=True)
    assert relative_difference(masked_logits(once, masks, tokens), slice_model(once, masks)(tokens).logits) < 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@torch.no_grad()
def test_generation_uses_the_cache_rightly_without_first_attention(family):
    model = tiny_model(family)
    pruned = slice_model(model, random_masks(Anatomy.from_model(model), sublayers=True))
    generated = pruned.generate(random_tokens(1, 12), max_new_tokens=10, do_sample=False)
    again = pruned(generated, use_cache=False).logits[0, 11:-1].argmax(-1)
    assert torch.equal(again, generated[0, 12:])


@torch.no_grad()
def test_without_the_norm_rule_hidden_slicing_is_wrong(monkeypatch):
    model, tokens = tiny_model("llama_tied", rms_norm_eps=1e-2), random_tokens()  # a large epsilon shows its rule too
    masks = random_masks(Anatomy.from_model(model), hidden=True)
    right = masked_logits(model, masks, tokens)
    assert relative_difference(right, slice_model(model, masks)(tokens).logits) < 1e-5
    with monkeypatch.context() as patch:
        patch.setattr(slicing.modeling_pruned, "_scale_eps", lambda norm, factor: None)
        assert relative_difference(right, slice_model(model, masks)(tokens).logits) > 1e-4
    sliced = slice_model(model, masks)
    kept = int(masks.hidden.sum())
    for name, parameter in sliced.named_parameters():
        if "norm" in name:
            parameter.mul_((kept / 32) ** 0.5)  # undo weight' = weight * sqrt(W / w)
    assert relative_difference(right, sliced(tokens).logits) > 1e-2


@torch.no_grad()
def test_removing_a_kv_group_removes_its_query_heads():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    groups = [torch.tensor([True, True]), torch.tensor([False, True]), torch.tensor([True, True])]
    masks = Masks.of(anatomy, kv_groups=groups)
    assert masks.q_heads[1].tolist() == [False, False, True, True]
    pruned = slice_model(model, masks)
    assert torch.equal(pruned.model.layers[1].self_attn.q_proj.weight, model.model.layers[1].self_attn.q_proj.weight[16:])


@torch.no_grad()
def test_slicing_nothing_changes_nothing():
    for family in FAMILIES:
        model, tokens = tiny_model(family), random_tokens()
        assert torch.equal(slice_model(model, Masks.of(Anatomy.from_model(model)))(tokens).logits, model(tokens).logits)


@torch.no_grad()
def test_slicing_leaves_the_dense_model_alone():
    model, tokens = tiny_model("llama_tied"), random_tokens()
    before = model(tokens).logits
    pruned = slice_model(model, random_masks(Anatomy.from_model(model), hidden=True))
    for parameter in pruned.parameters():
        parameter.zero_()
    assert torch.equal(model(tokens).logits, before)


def test_a_pruned_model_follows_a_changed_attention_implementation():
    model = tiny_model("mistral")
    pruned = slice_model(model, random_masks(Anatomy.from_model(model)))
    pruned.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in pruned.model.layers} == {"eager"}


@torch.no_grad()
def test_added_output_biases_survive_slicing_and_reload(tmp_path):
    model, tokens = tiny_model("llama"), random_tokens()
    for projection in (model.model.layers[1].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        projection.bias = torch.nn.Parameter(torch.randn(projection.out_features))
    masks = random_masks(Anatomy.from_model(model), seed=1, hidden=True)
    pruned = slice_model(model, masks)
    assert relative_difference(masked_logits(model, masks, tokens), pruned(tokens).logits) < 1e-5
    save_pruned(pruned, None, tmp_path / "pruned", {})
    assert torch.equal(load_pruned(tmp_path / "pruned", with_tokenizer=False)[0](tokens).logits, pruned(tokens).logits)


def llama_7b_on_meta():
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(rms_norm_eps=1e-6))


@pytest.mark.parametrize(
    ("layers", "heads", "channels", "params"),
    [(range(4, 30), 8, 2752, 5_422_977_024), (range(3, 31), 19, 6605, 3_350_188_032)],
)
def test_llama_7b_counts_of_llm_pruner_come_out_to_the_unit(layers, heads, channels, params):
    """LLM-Pruner's "5.42B" and "3.35B" rows (its README; layers 4-29 at ratio 0.25, layers 3-30 at ratio 0.6)."""
    model = llama_7b_on_meta()
    anatomy = Anatomy.from_model(model)
    assert anatomy.dense_params.total == 6_738_415_616
    assert anatomy.dense_params.blocks == 6_476_005_376
    groups = [torch.ones(32, dtype=torch.bool) for _ in range(32)]
    ffn = [torch.ones(11008, dtype=torch.bool) for _ in range(32)]
    for i in layers:
        groups[i][:heads] = False
        ffn[i][:channels] = False
    masks = Masks.of(anatomy, kv_groups=groups, ffn=ffn)
    assert masks.count(anatomy).total == params
    assert count_params(slice_model(model, masks)).total == params


def test_masks_that_do_not_fit_are_refused_before_anything_is_cut():
    anatomy = Anatomy.from_model(tiny_model("llama", intermediate_size=40))
    with pytest.raises(InvalidMasks, match=r"layer 0: mask ffn has shape \(40,\); the model needs \(48,\)"):
        slice_model(tiny_model("llama"), random_masks(anatomy))
