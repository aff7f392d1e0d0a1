"""Masks: what is valid, how they count, how they are stored."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunebench.models.anatomy import Anatomy
from prunebench.models.errors import InvalidMasks
from prunebench.models.masks import Masks
from prunebench.models.tiny import FAMILIES, random_masks, tiny_model

ANATOMIES = {family: Anatomy.from_model(tiny_model(family)) for family in FAMILIES}


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    seed=st.integers(0, 10_000),
    hidden=st.booleans(),
    sublayers=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_random_masks_are_valid_and_count_less_than_dense(family, seed, hidden, sublayers):
    anatomy = ANATOMIES[family]
    masks = random_masks(anatomy, seed=seed, hidden=hidden, sublayers=sublayers)
    masks.validate(anatomy)
    assert masks.count(anatomy).total <= anatomy.dense_params.total
    assert masks.count(anatomy).blocks <= anatomy.dense_params.blocks


def test_full_masks_count_the_dense_model():
    for anatomy in ANATOMIES.values():
        assert Masks.of(anatomy).count(anatomy) == anatomy.dense_params


def test_save_and_load_round_trip(tmp_path):
    masks = random_masks(ANATOMIES["gemma2"], hidden=True, sublayers=True)
    masks.save(tmp_path / "masks.safetensors")
    assert Masks.load(tmp_path / "masks.safetensors") == masks
    assert [path.name for path in tmp_path.iterdir()] == ["masks.safetensors"]


def test_equal_masks_make_equal_files(tmp_path):
    for name in ("first", "second"):
        random_masks(ANATOMIES["llama"]).save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_truncated_mask_file_is_refused(tmp_path):
    path = tmp_path / "masks.safetensors"
    random_masks(ANATOMIES["llama"]).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidMasks, match="truncated"):
        Masks.load(path)


def test_another_format_is_refused(tmp_path):
    save_file({"hidden": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidMasks, match="the format None"):
        Masks.load(tmp_path / "other.safetensors")


def test_unequal_query_heads_in_a_layer_are_refused():
    heads = [torch.ones(4, dtype=torch.bool) for _ in range(3)]
    heads[1][0] = False
    with pytest.raises(InvalidMasks, match=r"layer 1 keeps \[1, 2\] query heads.*same number"):
        Masks.of(ANATOMIES["llama"], q_heads=heads)


def test_a_group_without_query_heads_is_refused():
    heads = [torch.ones(4, dtype=torch.bool) for _ in range(3)]
    heads[2][:] = False
    with pytest.raises(InvalidMasks, match="layer 2"):
        Masks.of(ANATOMIES["llama"], q_heads=heads)


def test_an_empty_residual_stream_is_refused():
    with pytest.raises(InvalidMasks, match="residual stream"):
        Masks.of(ANATOMIES["llama"], hidden=torch.zeros(32, dtype=torch.bool))


def test_real_numbers_are_no_masks():
    with pytest.raises(InvalidMasks, match="layer 0: mask ffn has dtype float32; masks are boolean"):
        Masks.of(ANATOMIES["llama"], ffn=[torch.full((48,), float("nan"))] * 3)


def test_a_switch_that_contradicts_its_units_is_refused():
    masks = replace(Masks.of(ANATOMIES["llama"]), mlp=torch.tensor([True, False, True]))
    with pytest.raises(InvalidMasks, match="layer 1: mask mlp is False, but 48 of its units stay"):
        masks.validate(ANATOMIES["llama"])


def test_masks_for_another_depth_are_refused():
    with pytest.raises(InvalidMasks, match="are for 2 layers; the model has 3"):
        Masks.of(ANATOMIES["llama"], ffn=[torch.ones(48, dtype=torch.bool)] * 2)


def test_table_shows_every_layer():
    lines = str(Masks.of(ANATOMIES["llama"])).splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["0", "2/2", "4/4", "48/48"]
    assert lines[-1] == "residual width 32/32"
