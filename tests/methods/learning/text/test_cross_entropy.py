"""The chunked cross-entropy is torch's, value and gradient, whatever the chunk, the dtype and the missing targets."""

import pytest
import torch

from prunebench.methods.learning.text import cross_entropy as module
from prunebench.methods.learning.text.cross_entropy import NO_TARGET, cross_entropy, positions_at_once


def logits_and_targets(dtype=torch.float32, positions=13, vocabulary=50):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(positions, vocabulary, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    targets[[2, positions - 1]] = NO_TARGET
    return logits, targets


@pytest.mark.parametrize("positions", [1, 5, 13, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_torch_s(monkeypatch, positions, dtype):
    logits, targets = logits_and_targets(dtype)
    monkeypatch.setattr(module, "CPU_BYTES", 4 * logits.shape[1] * positions)
    assert positions_at_once(logits) == positions
    ours = cross_entropy(logits, targets)
    theirs = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=NO_TARGET)
    torch.testing.assert_close(ours, theirs)
    of_ours, of_theirs = (torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, theirs))
    assert of_ours.dtype == dtype
    torch.testing.assert_close(of_ours, of_theirs)
    assert not of_ours[2].any()


def test_no_gradient_is_made_where_none_is_asked_for():
    logits, targets = logits_and_targets()
    with torch.no_grad():
        assert not cross_entropy(logits, targets).requires_grad
    assert not cross_entropy(logits.detach(), targets).requires_grad


def test_the_logits_are_left_as_they_were():
    logits, targets = logits_and_targets()
    before = logits.detach().clone()
    cross_entropy(logits, targets).backward()
    assert torch.equal(logits, before)


def test_a_vocabulary_larger_than_the_cache_goes_position_by_position():
    assert positions_at_once(torch.empty(0, module.CPU_BYTES)) == 1
