"""Loading: every kind of name, and one sentence for everything that can't be loaded."""

import json
import shutil

import pytest
import torch

from prunebench.models import assets
from prunebench.models.anatomy import Anatomy
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.errors import AssetError, BadInput, CheckpointError
from prunebench.models.loading import ModelSpec, load_model, resolve_device, resolve_model
from prunebench.models.slice import slice_model
from prunebench.models.tiny import random_masks, random_tokens, tiny_model

EMBEDDED = ModelSpec(name="embedded:smollm2-135m-instruct", device="cpu")


@pytest.fixture(scope="module")
def smollm2():
    return load_model(EMBEDDED)


@pytest.fixture
def folder(tmp_path):
    save_pruned(tiny_model("llama"), None, tmp_path / "model", {})
    return tmp_path / "model"


def test_the_embedded_model_loads_and_knows_its_size(smollm2):
    anatomy = Anatomy.from_model(smollm2.model)
    assert anatomy.dense_params.total == 134_515_008
    assert anatomy.dense_params.blocks == 106_168_320
    assert (anatomy.layer_sizes(0), len(anatomy.layers), anatomy.is_tied) == ((9, 3, 1536), 30, True)
    assert smollm2.identity["source"] == "embedded"
    assert len(smollm2.identity["sha256"]) == 64
    assert smollm2.model.dtype == torch.float32


@torch.no_grad()
def test_the_embedded_model_speaks(smollm2):
    tokens = smollm2.tokenizer("The capital of France is", return_tensors="pt")
    generated = smollm2.model.generate(**tokens, max_new_tokens=3, do_sample=False)
    assert "Paris" in smollm2.tokenizer.decode(generated[0])


@torch.no_grad()
def test_the_embedded_model_sliced_saved_and_reloaded_gives_equal_logits(smollm2, tmp_path):
    masks = random_masks(Anatomy.from_model(smollm2.model), hidden=True, sublayers=True)
    pruned = slice_model(smollm2.model, masks)
    save_pruned(pruned, smollm2.tokenizer, tmp_path / "pruned", {})
    reloaded, tokenizer = load_pruned(tmp_path / "pruned")
    tokens = tokenizer("Half of it is gone.", return_tensors="pt").input_ids
    assert torch.equal(reloaded(tokens).logits, pruned(tokens).logits)
    assert tokens.tolist() == smollm2.tokenizer("Half of it is gone.", return_tensors="pt").input_ids.tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded:smollm3", "is not embedded; use a hub id"),
        ("no-such-folder", "is not there; use a hub id"),
        ("/no/such/folder", "is not there; use a hub id"),
        ("no-such-file.gguf", "does not exist"),
        ("nobody/nothing", "can't be loaded from the hub"),
    ],
)
def test_unknown_names_say_what_is_accepted(name, message):
    with pytest.raises(BadInput, match=message):
        load_model(ModelSpec(name=name))


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        load_model(ModelSpec(name=str(folder)))


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model(ModelSpec(name=str(folder)))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(ModelSpec(name=str(folder)))


@pytest.mark.parametrize("size", [0, 5, 1000, 30_000])
def test_truncated_weights_are_refused(folder, size):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
        load_model(ModelSpec(name=str(folder)))


def test_a_missing_shard_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks the weight file model-00001-of-00002"):
        load_model(ModelSpec(name=str(folder)))


def test_weights_of_another_shape_are_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 40}))
    with pytest.raises(CheckpointError, match=r"hold model.layers.0.mlp.down_proj.weight in the shape \(32, 48\).*asks for \(32, 40\)"):
        load_pruned(folder, with_tokenizer=False)


def test_missing_tensors_are_refused_and_not_drawn_at_random(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"lack model\.layers\.3"):
        load_pruned(folder, with_tokenizer=False)


def test_a_folder_without_tokenizer_is_refused(folder):
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_model(ModelSpec(name=str(folder)))


def test_remote_code_stays_off(folder, tmp_path):
    model = slice_model(tiny_model("llama"), random_masks(Anatomy.from_model(tiny_model("llama"))))
    save_pruned(model, None, tmp_path / "pruned", {})
    (tmp_path / "pruned" / "modeling_pruned.py").write_text("raise SystemExit('remote code ran')")
    reloaded, _ = load_pruned(tmp_path / "pruned", with_tokenizer=False)
    assert reloaded(random_tokens()).logits.shape[-1] == 128


@pytest.mark.parametrize("content", [b"", b"GGU", b"not a gguf file at all", b"GGUF", b"GGUF\x03\x00\x00\x00"])
def test_a_broken_gguf_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="GGUF"):
        load_model(ModelSpec(name=str(tmp_path / "model.gguf")))


@pytest.mark.parametrize("size", [3_000, 2_000_000, 50_000_000])
def test_a_truncated_gguf_is_refused(tmp_path, size):
    with assets.embedded_model_gguf().open("rb") as file:
        (tmp_path / "model.gguf").write_bytes(file.read(size))
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(ModelSpec(name=str(tmp_path / "model.gguf")))


def test_a_gguf_file_is_converted_once(tmp_path):
    shutil.copy(assets.embedded_model_gguf(), tmp_path / assets.embedded_model_gguf().name)
    first, identity = resolve_model(ModelSpec(name=str(tmp_path / assets.embedded_model_gguf().name)))
    embedded, _ = resolve_model(EMBEDDED)
    assert first.folder == embedded.folder
    assert identity["source"] == "gguf"


def test_an_unknown_device_is_refused():
    with pytest.raises(BadInput, match="device 'abacus' is not available"):
        resolve_device("abacus")


def test_an_interrupted_save_leaves_the_old_folder(folder, monkeypatch):
    before = (folder / "config.json").read_text()
    model = tiny_model("llama", intermediate_size=40)
    monkeypatch.setattr(type(model), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_pruned(model, None, folder, {})
    assert (folder / "config.json").read_text() == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_unwritable_cache_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="PRUNEBENCH_CACHE"):
        assets.embedded_model_gguf()
