"""What learning methods share is stated once: a subclass changes defaults, not names, ranges or descriptions."""

import pytest
from pydantic import Field, ValidationError

from prunebench.methods.compresso.pruner import CompressoConfig
from prunebench.methods.learning.config import LearningConfig, LoraLr
from prunebench.methods.nuteprune.config import NutePruneConfig

METHODS = [CompressoConfig, NutePruneConfig]


class OtherConfig(LearningConfig):
    """A third method, which states a default and a setting of its own."""

    lora_lr: LoraLr = 2e-3
    weight: float = Field(1.0, ge=0, description="of its loss")


@pytest.mark.parametrize("config", [LearningConfig, OtherConfig, *METHODS])
def test_every_setting_is_described(config):
    assert [name for name, field in config.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("config", [OtherConfig, *METHODS])
def test_a_shared_setting_has_the_same_type_and_range_in_every_method(config):
    assert config.model_fields.keys() > LearningConfig.model_fields.keys()
    for name, field in LearningConfig.model_fields.items():
        assert (config.model_fields[name].annotation, config.model_fields[name].metadata) == (field.annotation, field.metadata), name


def test_a_default_that_differs_is_all_that_differs():
    assert (LearningConfig().lora_lr, OtherConfig().lora_lr, NutePruneConfig().lora_lr) == (5e-5, 2e-3, 1e-3)
    assert OtherConfig.model_fields["lora_lr"].description == LearningConfig.model_fields["lora_lr"].description
    for config in (OtherConfig, *METHODS):
        for wrong in ({"lora_lr": 0}, {"batch_tokens": 7}, {"lora_projections": []}, {"finetune_epochs": -1}, {"weigth": 1}):
            with pytest.raises(ValidationError):
                config(**wrong)


@pytest.mark.parametrize("config", [OtherConfig, *METHODS])
def test_a_ramp_that_would_not_end_is_refused(config):
    with pytest.raises(ValidationError, match=r"ramp_epochs = 4\.5 is not accepted: give at most pruning_epochs, 2"):
        config(pruning_epochs=2, ramp_epochs=4.5)


@pytest.mark.parametrize(("lora_rank", "tokens"), [(8, 3 * 10 * (0.5 + 7 + 3)), (0, 3 * 10 * 7)])
def test_the_tokens_of_a_run_are_counted_where_the_epochs_are_given(lora_rank, tokens):
    assert LearningConfig(lora_rank=lora_rank).training_tokens() is None
    assert LearningConfig(steps_per_epoch=3, batch_tokens=10, lora_rank=lora_rank).training_tokens(0.5) == tokens
