"""Teachers come in the official code's order, its edge cases mended (docs/methods/nuteprune.md, eqs. 4 and 5)."""

import pytest
import torch

from prunebench.methods.nuteprune.snapshots import SnapshotManager
from prunebench.models.errors import PrunebenchError


def ramped(folder, target, steps=1000, **options):
    """A manager after a straight ramp, and (stored before the step, index taught) at each step of phase A."""
    manager = SnapshotManager(folder, "run", target, **options)
    taught = []
    for step in range(steps + 1):
        sparsity = step / steps * target
        if manager.steps_of_phase_b is None:
            taught.append((manager.stored, manager.select(10_000 - step)))
        if manager.wants(sparsity):
            manager.store(sparsity, {"gate.ffn": torch.tensor([sparsity])})
        manager.note(sparsity, 6000)
    return manager, taught


@pytest.mark.parametrize(("target", "count"), [(0.2, 19), (0.25, 24), (0.5, 49), (0.29, 28)])
def test_a_snapshot_is_stored_at_each_level(tmp_path, target, count):
    manager, _ = ramped(tmp_path, target)
    assert manager.stored == count
    assert manager.sparsities == pytest.approx([0.01 * i for i in range(1, count + 1)], abs=2e-3)
    assert manager.steps_of_phase_b == 6000


def test_in_phase_a_the_teacher_is_ten_levels_back_or_dense(tmp_path):
    _, taught = ramped(tmp_path, 0.5)
    for stored, index in taught:
        assert index == (stored - 10 if stored >= 10 else None)


def test_phase_b_walks_back_to_the_dense_model_as_in_the_example(tmp_path):
    manager, _ = ramped(tmp_path, 0.5)
    order = [manager.select(6000 - step) for step in range(6000)]
    sparsity = [0 if index is None else round(100 * manager.levels[index]) for index in order]
    assert sparsity[0] == 41
    assert sparsity[1] == sparsity[120] == 40
    assert sparsity[121] == 39
    assert sparsity[4680] == 2
    assert sparsity[4681] == 1
    assert order[4800] is not None
    assert order[4801] is None
    assert order[-1] is None
    assert sparsity == sorted(sparsity, reverse=True)


def test_a_short_phase_b_does_not_divide_by_zero(tmp_path):
    manager, _ = ramped(tmp_path, 0.2)
    manager.steps_of_phase_b = 5
    assert [manager.select(left) for left in range(5, 0, -1)] == [None] * 5


def test_a_sparsity_that_hovers_below_its_target_still_starts_phase_b(tmp_path):
    manager, _ = ramped(tmp_path, 0.2)
    manager.steps_of_phase_b = None
    manager.note(0.1985, 100)
    assert manager.steps_of_phase_b == 100


def test_a_small_target_has_the_dense_teacher(tmp_path):
    _, taught = ramped(tmp_path, 0.1)
    assert {index for _, index in taught} == {None}


@pytest.mark.parametrize("progression", ["dense", "second_phase"])
def test_ablations_have_the_dense_teacher_in_phase_a(tmp_path, progression):
    manager, taught = ramped(tmp_path, 0.5, progression=progression)
    assert {index for _, index in taught} == {None}
    assert (manager.select(6000) is None) == (progression == "dense")


def test_snapshots_come_back_from_disk_after_a_kill(tmp_path):
    manager, _ = ramped(tmp_path, 0.2)
    again = SnapshotManager(tmp_path, "run", 0.2)
    again.load(manager.facts())
    assert again.facts() == manager.facts()
    for index in (0, 18, 3):
        assert torch.equal(again.load_snapshot(index, torch.device("cpu"))["gate.ffn"], torch.tensor([manager.sparsities[index]]))


def test_the_snapshots_of_another_run_are_not_teachers(tmp_path):
    mine, _ = ramped(tmp_path, 0.2)
    other = SnapshotManager(tmp_path, "another run", 0.2)
    other.store(0.01, {"gate.ffn": torch.ones(1)})
    with pytest.raises(PrunebenchError, match=r"snapshot_000\.safetensors is of another run; clean this cell"):
        mine.load_snapshot(0, torch.device("cpu"))
    assert mine.load_snapshot(1, torch.device("cpu"))["gate.ffn"].item() == pytest.approx(0.02, abs=2e-3)
