"""A model is its bytes: any change gives another fingerprint, saving and loading gives the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunebench.evaluation.fingerprint import model_fingerprint
from prunebench.models.anatomy import Anatomy
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, random_masks, tiny_model
from tests.evaluation.conftest import VOCAB_SIZE, byte_tokenizer

TOKENIZER = byte_tokenizer()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def printed(family: str = "llama", tokenizer: Any = TOKENIZER, change: Any = lambda model: None, **options: Any) -> str:
    model = tiny_model(family, **options)
    change(model)
    return model_fingerprint(model, tokenizer)


def held(model: Any) -> dict[str, torch.Tensor]:
    """Every tensor of a model, non-persistent buffers included."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@settings(deadline=None, max_examples=40)
@given(family=st.sampled_from(sorted(FAMILIES)), dtype=st.sampled_from(DTYPES), data=st.data())
def test_one_byte_of_one_tensor_changes_it(family: str, dtype: torch.dtype, data: st.DataObject) -> None:
    model = tiny_model(family).to(dtype)
    before = model_fingerprint(model, TOKENIZER)
    tensors = held(model)
    tensor = tensors[data.draw(st.sampled_from(sorted(tensors)))]
    flat = tensor.detach().reshape(-1).clone()
    if not flat.numel():
        return
    raw = flat.view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    tensor.data.copy_(flat.reshape(tensor.shape))
    assert model_fingerprint(model, TOKENIZER) != before


BOOKKEEPING = ("_name_or_path", "transformers_version", "architectures", "dtype", "_commit_hash")


@settings(deadline=None, max_examples=40)
@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
def test_one_config_entry_changes_it(family: str, data: st.DataObject) -> None:
    model = tiny_model(family)
    before = model_fingerprint(model, TOKENIZER)
    names = [name for name in model.config.to_dict() if name in vars(model.config) and name not in BOOKKEEPING]
    model.config.__dict__[data.draw(st.sampled_from(names))] = "another"
    assert model_fingerprint(model, TOKENIZER) != before


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_one_entry_of_the_tokenizer_changes_it(data: st.DataObject) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    model = tiny_model("llama")
    parts = json.loads(TOKENIZER.backend_tokenizer.to_str())
    kind = data.draw(st.sampled_from(["merge", "added", "vocabulary", "pre_tokenizer", "post_processor"]))
    if kind == "merge":
        parts["model"]["merges"].pop(data.draw(st.integers(0, len(parts["model"]["merges"]) - 1)))
    elif kind == "added":
        parts["added_tokens"][data.draw(st.integers(0, 2))]["lstrip"] = True
    elif kind == "vocabulary":
        left, right = data.draw(st.lists(st.sampled_from(sorted(parts["model"]["vocab"])[:200]), min_size=2, max_size=2, unique=True))
        ids = parts["model"]["vocab"]
        ids[left], ids[right] = ids[right], ids[left]
    elif kind == "pre_tokenizer":
        parts["pre_tokenizer"]["add_prefix_space"] = True
    else:
        parts["post_processor"] = json.loads(byte_tokenizer(adds_bos=True).backend_tokenizer.to_str())["post_processor"]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), **special)
    assert model_fingerprint(model, changed) != model_fingerprint(model, TOKENIZER)


TOKENIZER_CHANGES = {
    "an added token": lambda tokenizer: tokenizer.add_tokens(["<new>"]),
    "BOS": lambda tokenizer: setattr(tokenizer, "bos_token", "</s>"),
    "the chat template": lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages[0].content }}"),
    "the longest text": lambda tokenizer: setattr(tokenizer, "model_max_length", 64),
    "whether BOS is added": lambda tokenizer: setattr(tokenizer, "add_bos_token", True),
}


@pytest.mark.parametrize("change", TOKENIZER_CHANGES)
def test_settings_of_the_tokenizer_change_it(change: str) -> None:
    tokenizer = byte_tokenizer()
    TOKENIZER_CHANGES[change](tokenizer)
    assert printed(tokenizer=tokenizer) != printed()


MODEL_CHANGES = {
    "an epsilon": lambda model: setattr(model.model.layers[1].input_layernorm, "variance_epsilon", 0.1),
    "the attention's scale": lambda model: setattr(model.model.layers[0].self_attn, "scaling", 1.0),
    "a generation setting": lambda model: setattr(model.generation_config, "repetition_penalty", 1.5),
    "the end token": lambda model: setattr(model.generation_config, "eos_token_id", 7),
    "rotary frequencies": lambda model: model.model.rotary_emb.inv_freq.mul_(2),
    "half the channels": lambda model: model.model.layers[2].mlp.down_proj.weight.data[:, 1::2].zero_(),
    "an activation": lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "a dtype": lambda model: model.to(torch.float64),
}


@pytest.mark.parametrize("change", MODEL_CHANGES)
def test_whatever_the_model_computes_by_changes_it(change: str) -> None:
    assert printed(change=MODEL_CHANGES[change]) != printed()


def test_a_scale_of_embeddings_that_no_file_holds_changes_it() -> None:
    def rescale(model: Any) -> None:
        model.model.embed_tokens.embed_scale.fill_(1.0)

    assert printed("gemma3", change=rescale) != printed("gemma3")


def test_another_class_over_the_same_tensors_changes_it() -> None:
    assert printed("llama") != printed("mistral", head_dim=8, sliding_window=None)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen2"}))  # whose tokenizer class makes another one of ours
def test_saving_and_loading_keeps_it(family: str, tmp_path: Path) -> None:
    before = printed(family)
    tiny_model(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model_fingerprint(*loaded) == before
    assert model_fingerprint(*loaded) == before  # and being read changes nothing


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_saving_and_loading_a_pruned_model_keeps_it(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, vocab_size=VOCAB_SIZE)
    pruned = slice_model(model, random_masks(Anatomy.from_model(model), seed=2, hidden=True, sublayers=True))
    before = model_fingerprint(pruned, byte_tokenizer())
    save_pruned(pruned, byte_tokenizer(), tmp_path / "folder", {})
    assert model_fingerprint(*load_pruned(tmp_path / "folder")) == before
    assert before != model_fingerprint(model, byte_tokenizer())


def test_use_changes_nothing() -> None:
    from prunebench.evaluation.engine.engine import Engine

    model, tokenizer = tiny_model("gemma3", vocab_size=264), byte_tokenizer()
    before = model_fingerprint(model, tokenizer)
    Engine(model, tokenizer).loglikelihood([("a", " b"), ("longer text", " c")])
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=3)
    model(torch.tensor([[5, 6]]), output_hidden_states=True, use_cache=True)
    assert model_fingerprint(model, tokenizer) == before


CODE = """
from torch import nn
from transformers import LlamaForCausalLM
from .helper import FACTOR

class Scaled(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * FACTOR
        return output
"""


def own_code(folder: Path, factor: str, code: str = CODE) -> str:
    """Fingerprint of a tiny Llama whose class comes from a package in `folder`."""
    package = folder / "with_own_code"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text(f"FACTOR = {factor}\n\nclass Unit:\n    pass\n")
    (package / "modeling.py").write_text(code.replace("import FACTOR", "import FACTOR, Unit"))
    sys.path.insert(0, str(folder))
    try:
        from with_own_code.modeling import Scaled  # type: ignore[import-not-found]

        model = tiny_model("llama")
        model.__class__ = Scaled
        return model_fingerprint(model, TOKENIZER)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.startswith("with_own_code")]:
            del sys.modules[name]


def test_code_that_comes_with_a_model_counts_wherever_it_lies(tmp_path: Path) -> None:
    first = own_code(tmp_path / "one", "2")
    assert own_code(tmp_path / "two", "2") == first
    assert own_code(tmp_path / "three", "3") != first  # in a file that the model's own file imports
    assert own_code(tmp_path / "four", "2", CODE.replace("* FACTOR", "/ FACTOR")) != first
    assert printed() != first


@pytest.mark.parametrize("how", ["hook", "pre-hook", "method", "class"])
def test_a_model_with_functions_put_on_it_is_never_the_same(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    if how == "hook":
        mlp.register_forward_hook(lambda module, inputs, output: output * 0)
    elif how == "pre-hook":
        mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    elif how == "method":
        mlp.forward = lambda hidden: hidden * 0
    else:
        monkeypatch.setattr(type(mlp), "forward", lambda self, hidden: hidden * 0)
    assert model_fingerprint(model, TOKENIZER) != model_fingerprint(model, TOKENIZER)


def test_weights_that_accelerate_holds_on_disk_are_read(tmp_path: Path) -> None:
    from accelerate import disk_offload

    found = []
    for number, factor in enumerate((1.0, 1.0, 2.0)):
        model = tiny_model("llama")
        model.model.layers[1].mlp.up_proj.weight.data.mul_(factor)
        folder = tmp_path / str(number)
        disk_offload(model, str(folder), execution_device=torch.device("cpu"))
        assert model.lm_head.weight.is_meta
        found.append(model_fingerprint(model, TOKENIZER))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("change", ["merge", "added", "none"])
def test_a_tokenizer_in_python_is_read_whole(tmp_path: Path, change: str) -> None:
    from transformers.models.ctrl import CTRLTokenizer

    merges = ["#version: 0.2", "t h 1", "th e</w> 1", "a n 1"]
    found = []
    for version in ("plain", change):
        folder = tmp_path / version
        folder.mkdir(exist_ok=True)
        tokens = ["<unk>", "t", "h", "e</w>", "th", "the</w>", "a", "n", "an"]
        (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
        lines = merges[:3] if version == "merge" else merges
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
        tokenizer = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        if version == "added":
            tokenizer.add_tokens(["<new>"])
        found.append(printed(tokenizer=tokenizer))
    assert (found[0] == found[1]) == (change == "none")
