"""The walk from layer to layer and the statistics of inputs."""

from __future__ import annotations

import pytest
import torch

from prunebench.methods.layerwise import InputGram, InputMoments, walk_layers, watched_inputs
from prunebench.models.tiny import FAMILIES, random_tokens, tiny_model

TOKENS = random_tokens(5, 12, seed=2)


def quiet(label, done, total):
    """Progress that nobody watches."""


@pytest.mark.parametrize("family", FAMILIES)
def test_walking_layer_by_layer_in_batches_sees_what_one_forward_pass_sees(family):
    model, outputs = tiny_model(family), {}
    handles = [layer.register_forward_hook(lambda m, i, o, n=n: outputs.__setitem__(n, o)) for n, layer in enumerate(model.model.layers)]
    with torch.no_grad():
        model(TOKENS)
    for handle in handles:
        handle.remove()

    def visit(index, run_layer):
        first, again = run_layer(), run_layer()
        assert torch.equal(first, again)
        torch.testing.assert_close(first, outputs[index], atol=1e-5, rtol=1e-5)
        return first

    walk_layers(model, TOKENS, visit, batch_size=2, progress=quiet)
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_what_a_visit_returns_enters_the_next_layer():
    model, seen = tiny_model("llama"), []

    def visit(index, run_layer):
        seen.append(run_layer())
        return torch.zeros_like(seen[-1])

    walk_layers(model, TOKENS, visit, batch_size=8, progress=quiet)
    assert not seen[1].abs().any()  # zero in, no biases: zero out


def test_an_error_in_a_visit_leaves_the_model_as_it_was():
    model = tiny_model("llama")

    def visit(index, run_layer):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        walk_layers(model, TOKENS, visit, batch_size=8, progress=quiet)
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_moments_do_not_depend_on_how_inputs_are_split_and_survive_large_means():
    values = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) + 500.0
    moments = InputMoments()
    for part in values.split([1, 30, 9]):
        moments.add(part[None])
    torch.testing.assert_close(moments.mean, values.double().mean(0))
    torch.testing.assert_close(moments.variance, values.double().var(0, correction=0))
    torch.testing.assert_close(moments.sum_of_squares, values.double().square().sum(0))


def test_half_precision_inputs_are_squared_in_double_precision():
    moments = InputMoments()
    moments.add(torch.full((1, 4, 2), 300.0, dtype=torch.float16))  # 300 squared overflows float16
    assert moments.sum_of_squares.tolist() == [360000.0, 360000.0]


def test_statistics_are_collected_at_the_watched_modules_only():
    model = tiny_model("llama")
    path = "model.layers.1.mlp.down_proj"
    with watched_inputs(model, [path], InputGram) as found, torch.no_grad():
        model(TOKENS)
    assert found[path].tokens == TOKENS.numel()
    assert found[path].gram.shape == (48, 48)
    assert not model.get_submodule(path)._forward_pre_hooks
