"""Each stage trains under the gates that it should: none in the warm-up, new draws in every step, the decided ones at the end."""

import pytest
import torch

from prunebench.methods.learning.config import LearningConfig
from prunebench.methods.learning.run.stages import FineTune, LearnMasks
from prunebench.methods.learning.text.packing import Pack, lm_loss
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.tiny import tiny_model
from tests.methods.learners import EXAMPLES, learner_of

KINDS = {"kv_groups", "ffn", "hidden"}


def gates_that_act(learner):
    """The gates of the forward pass now, by kind, copied; those of all layers in one row."""
    live = {kind: getattr(learner.live, kind) for kind in ("kv_groups", "q_heads", "ffn", "hidden")}
    return {
        kind: values.detach().clone() if kind == "hidden" else torch.cat([layer.detach() for layer in values], -1)
        for kind, values in live.items()
        if values is not None
    }


class Watching:
    """A stage that remembers which gates acted on each loss."""

    def loss(self, pack):
        self.seen = [*getattr(self, "seen", []), gates_that_act(self.learner)]
        return super().loss(pack)


class WatchedLearnMasks(Watching, LearnMasks):
    pass


class WatchedFineTune(Watching, FineTune):
    pass


def learner_with(**settings):
    config = LearningConfig(**{"steps_per_epoch": 1, "batch_tokens": 64, "lora_rank": 2} | settings)
    return learner_of(tiny_model("llama"), config)


def run(stage, steps=None):
    stage.enter()
    return [stage.step(step) for step in range(stage.steps if steps is None else steps)]


def test_the_warm_up_has_no_gates_and_draws_none():
    with learner_with(pruning_epochs=4.0) as learner:
        stage = WatchedLearnMasks(learner, warmup_epochs=3.0)
        noise = learner.generator.get_state()
        before = {kind: parameter.detach().clone() for kind, parameter in learner.gates.log_alpha.items()}
        logged = run(stage, 3)
        assert stage.seen == [{}, {}, {}]
        assert torch.equal(learner.generator.get_state(), noise)
        assert all(torch.equal(parameter, before[kind]) for kind, parameter in learner.gates.log_alpha.items())
        assert all("expected_sparsity" not in values for values in logged)
        stage.step(3)
        assert stage.seen[3].keys() == KINDS


@pytest.mark.parametrize("draws", ["pack", "example"])
def test_every_step_meets_new_noise(draws):
    """With gates that don't learn, so that a difference is the noise's."""
    with learner_with(gate_draws=draws, mask_lr=1e-9, pruning_epochs=4.0) as learner:
        for parameter in learner.gates.log_alpha.values():
            parameter.data.zero_()
        stage = WatchedLearnMasks(learner)
        run(stage)
    drawn = [gates for seen in stage.seen for gates in (seen["ffn"] if draws == "example" else [seen["ffn"]])]
    assert len(drawn) == (8 if draws == "example" else 4)  # two examples in a pack
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one - other).abs().mean() > 0.1
    assert all(seen.keys() == KINDS for seen in stage.seen)


@pytest.mark.parametrize("survivors", ["soft", "hard"])
def test_the_fine_tuning_runs_under_the_gates_that_the_model_is_left_with(survivors):
    with learner_with(survivors=survivors, finetune_epochs=3.0) as learner:
        for parameter in learner.gates.log_alpha.values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=learner.generator))
        masks = learner.harden().masks
        stage = WatchedFineTune(learner, decay="linear")
        logged = run(stage)
        stays = {"kv_groups": torch.cat(list(masks.kv_groups)), "ffn": torch.cat(list(masks.ffn)), "hidden": masks.hidden}
        for seen in stage.seen:
            assert seen.keys() == KINDS
            for kind, gates in seen.items():
                soft = torch.sigmoid(learner.gates.log_alpha[kind].detach() * 0.8 / (2 / 3))
                torch.testing.assert_close(gates, torch.where(stays[kind], soft if survivors == "soft" else 1.0, 0.0))
        first = learner.sampler
        first.go_to(0, 0)
        pack = first.next()
    plain = tiny_model("llama")
    with torch.no_grad(), apply_masks(plain, learner.anatomy, masks):
        masked = lm_loss(plain, pack).item()
    assert (logged[0]["lm_loss"] == pytest.approx(masked, rel=1e-5)) == (survivors == "hard")  # adapters change nothing yet


def test_without_lora_there_is_no_warm_up_and_no_fine_tuning():
    with learner_with(lora_rank=0, pruning_epochs=4.0) as learner:
        assert LearnMasks(learner, warmup_epochs=3.0).steps == 4
        assert FineTune(learner, decay="linear").steps == 0


def test_an_epoch_is_one_pass_over_the_text_unless_its_steps_are_given():
    with learner_with(steps_per_epoch=None, pruning_epochs=1.5, ramp_epochs=1.0, finetune_epochs=2.0) as learner:
        packs = len(EXAMPLES) // 2  # of 32 tokens each
        stage = LearnMasks(learner, warmup_epochs=0.5)
        assert (stage.warmup_steps, stage.steps, stage.ramp_steps) == (packs // 2, 2 * packs, packs)
        assert FineTune(learner, decay="cosine", accumulation=4).steps == 2 * packs // 4
        assert Pack.of(EXAMPLES[:2]).num_tokens == 64
