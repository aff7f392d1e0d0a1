"""A model is its bytes: every file that is read is hashed, checked and nothing else is read."""

import json
import os
import shutil
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prunebench.models import files as files_module
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.errors import AssetError, CheckpointError
from prunebench.models.files import model_files, sha256_of
from prunebench.models.loading import ModelSpec, check_loads, hub_commit, load_model
from prunebench.models.tiny import FAMILIES, tiny_model
from tests.experiments.support import save_tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny model with a tokenizer; tests copy it before they change it."""
    return save_tiny_model(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def configure(folder, **changes):
    (folder / "config.json").write_text(json.dumps(settings_of(folder) | changes))


def edit_tensors(folder, edit):
    held = load_file(folder / "model.safetensors")
    edit(held)
    save_file(held, folder / "model.safetensors", {"format": "pt"})


# --- identity --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipping_any_one_bit_of_the_weights_changes_the_identity(whole, tmp_path, data):
    folder = shutil.copytree(whole, tmp_path / f"m{time.monotonic_ns()}")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    before = model_files(folder).sha256
    content[data.draw(st.integers(start, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    weights.write_bytes(content)
    assert model_files(folder).sha256 != before


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changing_any_one_entry_of_the_config_changes_the_identity(whole, tmp_path, data):
    folder = shutil.copytree(whole, tmp_path / f"m{time.monotonic_ns()}")
    before = model_files(folder).sha256
    key = data.draw(st.sampled_from(sorted(settings_of(folder).keys() - {"model_type"})))
    value = settings_of(folder)[key]
    configure(folder, **{key: (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "else"})
    assert model_files(folder).sha256 != before


def test_changing_any_one_merge_of_the_tokenizer_changes_the_identity(folder):
    before = model_files(folder).sha256
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    seen = {before}
    for place in range(len(merges) - 1):
        merges[place], merges[place + 1] = merges[place + 1], merges[place]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        seen.add(model_files(folder).sha256)
    assert len(seen) == len(merges)


@pytest.mark.parametrize(
    "name",
    ["generation_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.model", "vocab.txt", "merges.txt"],
)
def test_every_file_that_a_loader_looks_for_is_part_of_the_identity(folder, name):
    before = model_files(folder).sha256
    (folder / name).write_text("{}")
    assert model_files(folder).sha256 != before


@pytest.mark.parametrize("name", ["README.md", "prunebench.json", "optimizer.pt", "requirements.txt", "model.fp16.safetensors"])
def test_files_that_no_loader_reads_are_no_part_of_it(folder, name):
    before = model_files(folder).sha256
    (folder / name).write_bytes(b"anything")
    assert model_files(folder).sha256 == before


def test_code_is_part_of_the_identity_where_it_may_run(folder):
    (folder / "mine.py").write_text("a = 1")
    without, with_code = model_files(folder).sha256, model_files(folder, trust_remote_code=True).sha256
    (folder / "mine.py").write_text("a = 2")
    assert model_files(folder).sha256 == without
    assert model_files(folder, trust_remote_code=True).sha256 != with_code


def test_a_remembered_hash_is_not_served_for_a_file_that_was_changed_with_its_time_restored(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files_module, "SETTLED_SECONDS", -1.0)  # remember at once
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    first, status = sha256_of(path), path.stat()
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256_of(path) != first


def test_a_hash_is_remembered_once_the_file_has_settled(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files_module, "SETTLED_SECONDS", -1.0)
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    first = sha256_of(path)
    monkeypatch.setattr(files_module, "_hash", lambda path: "hashed again")
    assert sha256_of(path) == first
    path.write_bytes(bytes(3 << 20))
    assert sha256_of(path) == "hashed again"


def test_hashing_works_where_nothing_can_be_remembered(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    assert len(sha256_of(path)) == 64


# --- one list of files -----------------------------------------------------------------------------------------------


def shard(folder):
    """The folder's weights in two shards with their index."""
    held = load_file(folder / "model.safetensors")
    names = sorted(held)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, chosen in parts.items():
        save_file({name: held[name] for name in chosen}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return index


def test_shards_are_the_same_model_as_one_file(folder, whole):
    shard(folder)
    one, _ = load_pruned(whole)
    other, _ = load_pruned(folder)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_folder_with_both_one_file_and_an_index_is_refused(folder, whole):
    shard(folder)
    shutil.copy(whole / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        model_files(folder)


def test_shards_without_an_index_are_refused(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds the shard model-00001-of-00002\.safetensors, but no"):
        model_files(folder)


@pytest.mark.parametrize("change", ["unlisted", "twice", "elsewhere", "outside", "empty"])
def test_an_index_that_says_other_things_than_its_shards_is_refused(folder, change):
    index = shard(folder)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    name = sorted(index["weight_map"])[0]
    if change == "unlisted":
        del index["weight_map"][name]
    elif change == "elsewhere":
        index["weight_map"][name] = second
    elif change == "outside":
        index["weight_map"][name] = "../model-00001-of-00002.safetensors"
    elif change == "empty":
        index["weight_map"] = {}
    else:
        save_file(load_file(folder / second) | {name: load_file(folder / first)[name]}, folder / second, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"disagree about|stands in both|of the same folder are read|names no tensors"):
        model_files(folder)


@pytest.mark.parametrize("leftover", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_leftovers_of_an_adapter_beside_a_whole_model_are_refused(folder, leftover):
    (folder / leftover).write_text("{}")
    with pytest.raises(CheckpointError, match=f"adapter file {leftover}, which a loader would put on top"):
        load_pruned(folder)


def test_a_weight_file_named_by_the_config_is_refused(folder):
    configure(folder, transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match="sets transformers_weights"):
        load_pruned(folder)


def test_pickled_weights_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no weights.*pytorch_model\.bin is no such file"):
        load_pruned(folder)


def test_code_from_another_repository_is_refused(folder):
    configure(folder, auto_map={"AutoModelForCausalLM": "someone/else--modeling.Model"})
    with pytest.raises(CheckpointError, match="takes its code from 'someone/else'"):
        model_files(folder, trust_remote_code=True)


# --- the config and the tensors fit each other -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(32)}), "hold model.layers.0.self_attn.o_proj.bias, which"),
        (lambda t: t.update({"model.extra.weight": torch.ones(3, 3)}), "hold model.extra.weight, which"),
        (lambda t: t.pop("model.norm.weight"), "lack model.norm.weight"),
        (lambda t: t.pop("lm_head.weight"), "lack lm_head.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), r"hold model.norm.weight in the shape \(31,\).*asks for \(32,\)"),
        (lambda t: t.update({k: v.to(torch.float8_e4m3fn) for k, v in t.items() if "mlp" in k}), "are quantised"),
        (lambda t: t.update({k: v.to(torch.int8) for k, v in t.items() if "q_proj" in k}), "are quantised"),
        (lambda t: t.update({k: v.half() for k, v in t.items()}), "says float32, but its tensors are float16"),
    ],
)
def test_tensors_that_the_config_does_not_describe_are_refused(folder, edit, message):
    edit_tensors(folder, edit)
    spec = ModelSpec(name=str(folder))
    with pytest.raises(CheckpointError, match=message):
        check_loads(spec)
    with pytest.raises(CheckpointError, match=message):
        load_model(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "hold model.layers.2"),
        ({"num_hidden_layers": 4}, "lack model.layers.3"),
        ({"num_attention_heads": 8, "head_dim": 8}, r"o_proj.weight in the shape \(32, 32\).*asks for \(32, 64\)"),
        ({"num_key_value_heads": 4}, "k_proj.weight in the shape"),
        ({"tie_word_embeddings": True}, "ties lm_head.weight to model.embed_tokens.weight"),
        ({"attention_bias": True}, "lack model.layers.0.self_attn"),
        ({"vocab_size": 299}, "in the shape"),
        ({"architectures": ["MistralForCausalLM"]}, "names the architecture MistralForCausalLM"),
        ({"dtype": "bfloat16"}, "says bfloat16, but its tensors are float32"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantised weights \(awq\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, r"quantised weights \(bitsandbytes\)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, r"quantised weights \(compressed-tensors\)"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"quantised weights \(fp8\)"),
        ({"model_type": "no_such_type"}, "can't be loaded"),
        ({"model_type": "no_such_type", "auto_map": {"AutoConfig": "mine.Config"}}, "whose code comes with it.*--trust-remote-code"),
        ({"num_attention_heads": "four"}, "can't be loaded"),
        ({"rope_parameters": {"rope_type": "no_such_rope"}}, "can't be loaded"),
        ({"layer_types": ["full_attention"], "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "number of `layer_types`"),
    ],
)
def test_a_config_that_contradicts_its_tensors_or_itself_is_refused(folder, changes, message):
    configure(folder, **changes)
    spec = ModelSpec(name=str(folder))
    with pytest.raises(CheckpointError, match=message):
        check_loads(spec)
    with pytest.raises(CheckpointError, match=message):
        load_model(spec)


def test_a_head_that_is_stored_although_it_is_tied_is_no_contradiction(folder):
    edit_tensors(folder, lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"].clone()}))
    configure(folder, tie_word_embeddings=True)
    assert load_model(ModelSpec(name=str(folder))).model.lm_head.weight.shape == (300, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_it_was_saved(family, tmp_path):
    model = tiny_model(family)
    save_pruned(model, None, tmp_path / "model", {})
    reloaded, _ = load_pruned(tmp_path / "model", with_tokenizer=False)
    assert all(torch.equal(value, reloaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_attention_without_its_package_is_refused_before_the_weights_are_read(folder):
    spec = ModelSpec(name=str(folder), attn_implementation="flash_attention_2")
    with pytest.raises(CheckpointError, match=r"can't be loaded: .*[Ff]lash"):
        check_loads(spec)


# --- the tokenizer fits the model ------------------------------------------------------------------------------------


def test_ids_beyond_the_embedding_are_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    tiny_model("llama", vocab_size=290).save_pretrained(folder)
    spec = ModelSpec(name=str(folder))
    for look in (check_loads, load_model):
        with pytest.raises(CheckpointError, match=r"gives ids up to 299 \(.* is 290\), but the model's embedding has 290 rows"):
            look(spec)


@pytest.mark.parametrize(("special", "is_refused"), [(False, True), (True, False)])
def test_an_added_token_beyond_the_embedding_is_refused_unless_no_text_turns_into_it(tmp_path, special, is_refused):
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<picture>"], special_tokens=special)
    tokenizer.save_pretrained(folder)
    spec = ModelSpec(name=str(folder))
    if is_refused:
        with pytest.raises(CheckpointError, match="'<picture>' is 300"):
            load_model(spec)
    else:
        load_model(spec)


# --- dtype -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_default_dtype_is_the_one_that_is_stored(tmp_path, dtype):
    folder = save_tiny_model(tmp_path / "model")
    tiny_model("llama", vocab_size=300).to(dtype).save_pretrained(folder)
    loaded = load_model(ModelSpec(name=str(folder)))
    assert loaded.model.dtype == dtype
    assert loaded.identity["dtype"] == str(dtype).removeprefix("torch.")
    assert load_model(ModelSpec(name=str(folder), dtype="float16")).model.dtype == torch.float16


def test_the_default_attention_is_what_the_model_supports(tmp_path):
    folder = save_tiny_model(tmp_path / "model", "gemma2")
    loaded = load_model(ModelSpec(name=str(folder)))
    assert loaded.identity["attn_implementation"] in ("eager", "sdpa")
    assert check_loads(ModelSpec(name=str(folder))) is not None


# --- hub models in the hub's cache -----------------------------------------------------------------------------------


@pytest.fixture
def hub(whole, tmp_path, monkeypatch):
    """A model in a hub cache of its own, as the hub's client lays it out, without a network."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(whole, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_commit.cache_clear()
    yield commit
    hub_commit.cache_clear()


def test_a_hub_model_is_named_by_its_commit_and_checked_like_a_folder(hub, whole, tmp_path):
    loaded = load_model(ModelSpec(name="someone/tiny"))
    assert loaded.identity["revision"] == hub == hub_commit("someone/tiny", None)
    assert loaded.identity["sha256"] == model_files(whole).sha256
    snapshot = next((tmp_path / "hub").glob("*/snapshots/*"))
    (snapshot / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter file"):
        check_loads(ModelSpec(name="someone/tiny"))


def test_a_hub_model_that_is_nowhere_has_no_commit_and_is_not_here(hub):
    assert hub_commit("someone/else", None) is None
    assert check_loads(ModelSpec(name="someone/else")) is None


# --- converted files -------------------------------------------------------------------------------------------------


def test_a_converted_model_that_was_changed_in_the_cache_is_converted_again(tmp_path, monkeypatch):
    from prunebench.models import loading

    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    converted = []

    def convert(path, target, name):
        save_tiny_model(target)
        converted.append(path.read_bytes() == gguf.read_bytes())

    monkeypatch.setattr(loading, "_write_converted", convert)
    monkeypatch.setattr(loading, "_check_gguf_size", lambda path: None)
    folder = loading.convert_gguf(gguf)
    assert loading.convert_gguf(gguf) == folder
    assert converted == [True]
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    loading.convert_gguf(gguf)
    assert converted == [True, True]
    assert load_pruned(folder)[0].config.vocab_size == 300


def test_what_lies_beside_a_gguf_file_is_not_read(tmp_path):
    from prunebench.models import assets
    from prunebench.models.loading import convert_gguf

    shutil.copy(assets.embedded_model_gguf(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("not even JSON")
    (tmp_path / "config.json").write_text("{}")
    assert convert_gguf(tmp_path / assets.embedded_model_gguf().name).is_dir()


def test_an_embedded_model_that_was_changed_in_the_cache_is_refused(tmp_path, monkeypatch):
    from prunebench.models import assets

    changed = tmp_path / assets.EMBEDDED_MODEL.keep[0]
    changed.parent.mkdir(parents=True)
    changed.write_bytes(b"GGUF")
    monkeypatch.setattr(assets, "fetch", lambda asset: tmp_path)
    with pytest.raises(AssetError, match="was changed since it was fetched"):
        assets.embedded_model_gguf()
