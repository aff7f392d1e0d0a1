"""Compresso keeps what its paper and its code promise (docs/methods/compresso.md)."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench.methods.compresso.prompts import prompt_text
from prunebench.methods.compresso.pruner import Compresso, CompressoConfig, prompt_tokens
from prunebench.methods.data import PruningData
from prunebench.methods.data.training_text import Example, TrainingConfig
from prunebench.methods.learning.gates.gates import GateKinds, GateSet
from prunebench.methods.learning.run.adapters import Adapters
from prunebench.methods.learning.run.loop import STATE_FILE, TrainingDiverged, run_stages
from prunebench.methods.learning.run.stages import VALIDATION_EXAMPLES, FineTune
from prunebench.methods.learning.text.packing import Pack, lm_loss
from prunebench.methods.pruner import Run
from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import BadInput
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.tiny import random_masks, random_tokens, tiny_model
from tests.methods.learners import BUDGET, CPU, EXAMPLES, assert_sliced_is_trained, learner_of, text_of

LAST_STEP = 8 + 2 - 1  # of the quick settings: eight steps of learning, two of fine-tuning


def quick(**changes) -> CompressoConfig:
    return Compresso.quick_config().model_copy(update={"checkpoint_every": 3, **changes})


def tokens_as_data() -> PruningData:
    return PruningData(random_tokens(8, 32, seed=1), "random tokens")


def learner_on(model, *, text=None, **changes):
    return learner_of(model, quick(**changes), text=text)


def prune(folder, model=None, *, seed=0, on_step=None, **changes):
    model = model if model is not None else tiny_model("llama")
    curves = []

    def log(step, values):
        curves.append((step, values))
        if on_step is not None:
            on_step(step)

    run = Run(seed=seed, device=CPU, folder=folder, log_metrics=log)
    return Compresso(quick(**changes)).prune(model, BUDGET, tokens_as_data(), run), model, curves


def test_open_gates_without_multipliers_leave_the_model_as_it_is():
    model, plain = tiny_model("llama"), tiny_model("llama")
    pack = Pack.of([Example(random_tokens(1, 20)[0], 5)])
    with learner_on(model) as learner, torch.no_grad():
        learner.gates.as_gates({kind: torch.ones_like(p) for kind, p in learner.gates.log_alpha.items()}, learner.live)
        gated = model(pack.tokens).logits
        torch.testing.assert_close(gated, plain(pack.tokens).logits, atol=1e-5, rtol=0)
        labels = Example(pack.tokens[0], 5).labels[None]
        torch.testing.assert_close(lm_loss(model, pack), plain(pack.tokens, labels=labels).loss, atol=1e-5, rtol=0)


def test_what_a_closed_gate_shuts_gets_no_gradient():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    masks = random_masks(anatomy, seed=1, hidden=True)
    with apply_masks(model, anatomy, masks):
        model(random_tokens(), labels=random_tokens()).loss.backward()
    for i, layer in enumerate(model.model.layers):
        dim = layer.self_attn.head_dim
        heads, groups = masks.q_heads[i].repeat_interleave(dim), masks.kv_groups[i].repeat_interleave(dim)
        assert not layer.self_attn.q_proj.weight.grad[~heads].any()
        assert not layer.self_attn.v_proj.weight.grad[~groups].any()
        assert not layer.self_attn.o_proj.weight.grad[:, ~heads].any()
        assert not layer.self_attn.o_proj.weight.grad[~masks.hidden].any()
        assert not layer.mlp.up_proj.weight.grad[~masks.ffn[i]].any()
        assert not layer.mlp.down_proj.weight.grad[:, ~masks.ffn[i]].any()
        assert layer.mlp.up_proj.weight.grad[masks.ffn[i]].any()


def test_closed_residual_dimensions_are_exactly_zero_in_every_layer():
    model = tiny_model("llama")
    anatomy = Anatomy.from_model(model)
    masks = random_masks(anatomy, seed=1, hidden=True)
    with apply_masks(model, anatomy, masks), torch.no_grad():
        states = model(random_tokens(), output_hidden_states=True).hidden_states
    assert len(states) == 4
    assert all(not state[..., ~masks.hidden].any() for state in states)


def test_the_validation_loss_is_the_mean_over_the_labels_of_the_first_held_out_examples(tmp_path):
    model = tiny_model("llama")
    held_out = [Example(row[: 10 + i % 20], 4) for i, row in enumerate(random_tokens(VALIDATION_EXAMPLES + 5, 32, seed=2))]
    curves = []
    run = Run(seed=0, device=CPU, folder=tmp_path, log_metrics=lambda step, values: curves.append(values))
    text = text_of(EXAMPLES, held_out)
    with learner_on(model, text=text, finetune_epochs=3.0, finetune_lr=1e-2) as learner:
        stage = FineTune(learner, decay="linear")
        run_stages([stage], learner, run, fingerprint="", checkpoint_every=100)
        with torch.no_grad():
            losses = [
                torch.nn.functional.cross_entropy(model(e.tokens[None]).logits[0, :-1], e.labels[1:], reduction="sum")
                for e in held_out[:VALIDATION_EXAMPLES]
            ]
    labels = sum(len(e.tokens) - e.prompt_tokens for e in held_out[:VALIDATION_EXAMPLES])
    assert curves[-1]["validation_loss"] == pytest.approx(float(sum(losses)) / labels, rel=1e-5)
    assert "validation_loss" in curves[0]
    assert "validation_loss" not in curves[1]
    assert curves[0]["validation_loss"] != curves[-1]["validation_loss"]


def test_only_adapters_gates_and_multipliers_learn():
    model = tiny_model("llama")
    with learner_on(model) as learner:
        for parameter in learner.gates.log_alpha.values():
            parameter.data.zero_()  # where a draw is rarely clamped
        pack = learner.next_pack()
        learner.draw_gates(pack)
        lm_loss(model, pack).backward()
        with_grad = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert with_grad == set(learner.adapters.parameters)
        assert all(".lora_" in name for name in with_grad)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.gates.log_alpha.values())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == []


def test_llama_7b_trains_4551680_parameters():
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        anatomy = Anatomy.from_model(model)
        adapters = Adapters(model, anatomy, rank=8, alpha=8, projections=("q", "v"), generator=torch.Generator().manual_seed(0))
    gates = GateSet(anatomy, GateKinds(), torch.Generator().manual_seed(0))
    assert adapters.num_params == 4_194_304
    assert adapters.num_params + gates.num_gates == 4_551_680


def test_merged_adapters_compute_what_attached_ones_did():
    model = tiny_model("llama")
    adapters = Adapters(
        model, Anatomy.from_model(model), rank=2, alpha=4, projections=("q", "v", "down"), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.add_(0.2)
        attached = model(random_tokens()).logits
        with adapters.switched_off():
            off = model(random_tokens()).logits
        adapters.merge()
        torch.testing.assert_close(model(random_tokens()).logits, attached, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(off, tiny_model("llama")(random_tokens()).logits, atol=0, rtol=0)
    assert not torch.allclose(attached, off)


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
@pytest.mark.parametrize("survivors", ["soft", "hard"])
def test_the_sliced_model_is_the_one_that_was_trained(tmp_path, family, survivors):
    with learner_on(tiny_model(family), survivors=survivors) as learner:
        assert_sliced_is_trained(learner)


def test_the_same_seed_gives_the_same_masks_and_weights(tmp_path):
    (first, model, _), (second, again, _) = (prune(tmp_path / str(i)) for i in range(2))
    other, _, _ = prune(tmp_path / "other", seed=1)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert first != other


@pytest.mark.parametrize("killed_at", [0, 1, 4, 7, 8, LAST_STEP])
def test_killed_and_resumed_ends_the_same(tmp_path, killed_at):
    """Before the first checkpoint, between two, at a stage's end, in the fine-tuning, after the last step."""
    whole, model, _ = prune(tmp_path / "whole")

    def kill(step):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "killed", on_step=kill)
    resumed, again, curves = prune(tmp_path / "killed")
    assert len(curves) <= LAST_STEP + 1 - 3 * (killed_at // 3) or killed_at >= 7
    assert resumed == whole
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path):
    prune(tmp_path, seed=1)
    fresh, _, curves = prune(tmp_path, seed=0)
    assert len(curves) == LAST_STEP + 1
    assert fresh == prune(tmp_path / "elsewhere", seed=0)[0]


def test_a_killed_prune_leaves_the_model_without_hooks_or_adapters(tmp_path):
    model = tiny_model("llama")

    def kill(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, model, on_step=kill)
    assert Anatomy.from_model(model) == Anatomy.from_model(tiny_model("llama"))
    with torch.no_grad():
        assert torch.equal(model(random_tokens()).logits, tiny_model("llama")(random_tokens()).logits)


def test_every_step_is_logged(tmp_path):
    _, _, curves = prune(tmp_path)
    assert [step for step, _ in curves] == list(range(LAST_STEP + 1))
    warmup, pruning, tuning = curves[0][1], curves[3][1], curves[-1][1]
    assert set(warmup) == {"lm_loss", "lora_lr", "tokens_per_second", "tokens_seen"}
    assert {"lm_loss", "expected_sparsity", "target_sparsity", "lambda1", "lambda2", "gate_entropy", "tokens_per_second"} < set(pruning)
    assert {"expected_heads.layer_00", "expected_channels.layer_02", "expected_hidden"} < set(pruning)
    assert pruning["target_sparsity"] == pytest.approx(0.35 * 2 / 4)
    assert tuning["realised_sparsity"] == pytest.approx(0.35, abs=0.005)


def test_the_adapters_rate_falls_in_a_line_until_the_gates_are_decided_and_as_a_cosine_after(tmp_path):
    settings = {"warmup_epochs": 1.5, "pruning_epochs": 4.5, "finetune_epochs": 12.0, "finetune_accumulation": 2}
    curves = prune(tmp_path, lora_lr=1e-3, finetune_lr=2e-3, **settings)[2]
    rates = [values["lora_lr"] for _, values in curves]
    assert rates[:6] == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])
    assert rates[6:] == pytest.approx([2e-3 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])


@pytest.mark.parametrize(("ramp", "share"), [("linear", lambda k: k), ("cubic", lambda k: 1 - (1 - k) ** 3)])
def test_the_target_rises_as_the_setting_says_and_then_stays(tmp_path, ramp, share):
    curves = prune(tmp_path, ramp=ramp, warmup_epochs=2.0, pruning_epochs=7.0, ramp_epochs=5.0, finetune_epochs=0.0)[2]
    targets = [values["target_sparsity"] for _, values in curves if "target_sparsity" in values]
    assert targets == pytest.approx([0.35 * share(min(1, step / 5)) for step in range(7)])


def test_expected_sparsity_reaches_the_target(tmp_path):
    """With enough steps the shift of the last landing is small: training did the work."""
    _, _, curves = prune(tmp_path, steps_per_epoch=30, mask_lr=0.3, multiplier_lr=0.3, warmup_epochs=0.1, checkpoint_every=1000)
    last = curves[-1][1]
    learnt = [values for _, values in curves if "expected_sparsity" in values]
    assert learnt[-1]["expected_sparsity"] == pytest.approx(0.35, abs=0.02)
    assert abs(last["landing_shift"]) < 1
    lambda2 = [values["lambda2"] for values in learnt]
    assert lambda2 == sorted(lambda2)


def test_slower_heads_leave_the_cut_to_channels(tmp_path):
    settings = {"steps_per_epoch": 12, "mask_lr": 0.3, "checkpoint_every": 1000, "hidden_gates": False}
    even = prune(tmp_path / "a", **settings)[0]
    assert prune(tmp_path / "b", head_mask_lr=0.3, **settings)[0] == even
    slow = prune(tmp_path / "c", head_mask_lr=0.01, **settings)[0]
    kept = [sum(int(layer.sum()) for layer in masks.kv_groups) for masks in (even, slow)]
    assert kept[0] < kept[1] == sum(len(layer) for layer in slow.kv_groups)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    plain, _, curves = prune(tmp_path / "a")
    saved, again, other = prune(tmp_path / "b", gradient_checkpointing=True)
    assert plain == saved
    assert [v["lm_loss"] for _, v in curves] == pytest.approx([v["lm_loss"] for _, v in other], rel=1e-4)
    assert not again.is_gradient_checkpointing
    assert not again.training


def test_without_lora_weights_change_by_folding_only(tmp_path):
    masks, model, curves = prune(tmp_path, lora_rank=0, survivors="hard")
    plain = tiny_model("llama")
    kept = masks.q_heads[0].repeat_interleave(8)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, plain.model.layers[0].self_attn.q_proj.weight)
    ours, theirs = (m.model.layers[0].self_attn.o_proj.weight[masks.hidden][:, kept] for m in (model, plain))
    assert torch.equal(ours, theirs)
    assert len(curves) == 7


def test_an_infinite_loss_stops_the_run_and_names_the_step(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match="lm_loss is nan at step 0 of learning masks"):
        prune(tmp_path, model)
    assert not (tmp_path / STATE_FILE).exists()


def test_the_model_can_write_its_own_training_text(tmp_path):
    text = TrainingConfig(source="self", max_len=16)
    first, _, _ = prune(tmp_path / "a", text=text, self_text_examples=40)
    assert sorted(path.name for path in (tmp_path / "a").glob("self_text*")) == [
        "self_text_00000.safetensors",
        "self_text_00001.safetensors",
    ]
    assert first == prune(tmp_path / "b", text=text, self_text_examples=40)[0]


@pytest.mark.parametrize("name", ["training", "past_tense"])
def test_the_prompt_is_a_note_to_the_model_of_the_papers_length(word_tokenizer, name):
    tokenizer = word_tokenizer([prompt_text("training"), prompt_text("past_tense")])
    data = PruningData(torch.empty(0, 0, dtype=torch.int64), "none", tokenizer)
    tokens = prompt_tokens(name, data)
    assert tokenizer.decode(tokens[:4]).startswith("Dear language model")
    assert 200 <= len(tokens) <= 320
    assert prompt_tokens("none", data) is None


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_run_with_a_prompt_lands_on_the_budget(tmp_path, word_tokenizer, monkeypatch, family):
    """Shared by the examples of a pack (llama), or before each example where a window slides (mistral)."""
    monkeypatch.setattr("prunebench.methods.compresso.pruner.prompt_text", lambda name: "be kind" if name != "none" else "")
    data = replace(tokens_as_data(), tokenizer=word_tokenizer(["be kind"]))
    model = tiny_model(family)
    config = quick(prompt="training")
    masks = Compresso(config).prune(model, BUDGET, data, Run(seed=0, device=CPU, folder=tmp_path))
    BUDGET.check(Anatomy.from_model(model).dense_params, masks.count(Anatomy.from_model(model)))


def test_a_prompt_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(BadInput, match="prompt: none"):
        prune(tmp_path, prompt="training")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_gates": False, "channel_gates": False, "hidden_gates": False}, "switched off"),
        ({"head_gates": False, "query_head_gates": True}, "need head_gates"),
        ({"protect_first": 3, "hidden_gates": False}, "leave none of 3 layers"),
    ],
)
def test_settings_that_leave_nothing_to_prune_are_refused_with_a_reason(changes, reason):
    support = Compresso(quick(**changes)).supports(Anatomy.from_model(tiny_model("llama")))
    assert not support.ok
    assert reason in support.reason
