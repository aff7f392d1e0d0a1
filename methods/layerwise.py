"""The decoder run layer by layer over a whole calibration set, and statistics of what enters its projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunebench.methods.pruner import Progress

VisitLayer = Callable[[int, Callable[[], Tensor]], Tensor]


@torch.no_grad()
def walk_layers(model: PreTrainedModel, samples: Tensor, visit: VisitLayer, *, batch_size: int, progress: Progress) -> None:
    """Runs the decoder once, one layer after the other, each on all samples before the next begins.

    `visit(index, run_layer)` stands in place of a layer's forward: `run_layer()` runs the layer on all samples, in batches,
    and returns its output (num_samples, seq_len, hidden); it may be called again after a change to the layer. What `visit`
    returns enters the next layer, so that a method sees inputs that come from layers already pruned. One layer's inputs and
    outputs are held at a time; the output head is not run.

    Args:
        samples: (num_samples, seq_len) token ids.
        batch_size: samples that one layer runs on at a time.
    """
    decoder = model.get_decoder()
    layers = list(decoder.layers)

    def stand_in(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def visited(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            returns_tuple = False

            def run_layer() -> Tensor:
                nonlocal returns_tuple
                outputs = []
                for start in range(0, len(hidden_states), batch_size):
                    rows = slice(start, start + batch_size)
                    inputs = [_rows(value, rows, len(hidden_states)) for value in (hidden_states, *args)]
                    options = {name: _rows(value, rows, len(hidden_states)) for name, value in kwargs.items()}
                    output = forward(*inputs, **options)
                    returns_tuple = isinstance(output, tuple)
                    outputs.append(output[0] if isinstance(output, tuple) else output)
                return torch.cat(outputs)

            output = visit(index, run_layer)
            progress("layers", index + 1, len(layers))
            return (output,) if returns_tuple else output

        return visited

    for index, layer in enumerate(layers):
        layer.forward = stand_in(index, layer.forward)
    try:
        decoder(input_ids=samples.to(model.device), use_cache=False)
    finally:
        for layer in layers:
            del layer.forward


def _rows(value: Any, rows: slice, num_samples: int) -> Any:
    """The part of a layer's argument that belongs to some samples; what all samples share stays whole."""
    if isinstance(value, tuple):
        return tuple(_rows(one, rows, num_samples) for one in value)
    is_per_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_samples and num_samples > 1
    return value[rows] if is_per_sample else value


class InputMoments:
    """Count, mean and spread of each input of a module over all tokens, in float64 (Chan's parallel update, exact for any
    split into batches)."""

    def __init__(self) -> None:
        self.tokens = 0
        self.mean = torch.zeros(())
        self.deviations = torch.zeros(())  # sum of squared deviations from the mean

    def add(self, inputs: Tensor) -> None:
        """Takes in (..., width) inputs of any floating dtype."""
        rows = inputs.detach().flatten(0, -2).double()
        mean = rows.mean(0)
        deviations = (rows - mean).square_().sum(0)
        if self.tokens == 0:
            self.tokens, self.mean, self.deviations = len(rows), mean, deviations
            return
        total = self.tokens + len(rows)
        shift = mean - self.mean
        self.deviations += deviations + shift.square() * (self.tokens * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.tokens = total

    @property
    def variance(self) -> Tensor:
        """(width,) float64: mean squared deviation over tokens."""
        return self.deviations / max(self.tokens, 1)

    @property
    def sum_of_squares(self) -> Tensor:
        """(width,) float64: over all tokens."""
        return self.deviations + self.tokens * self.mean.square()


class InputGram:
    """Sum over all tokens of x x^T of the inputs x of a module, in float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self.gram = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Takes in (..., width) inputs of any floating dtype."""
        rows = inputs.detach().flatten(0, -2).float()
        self.gram = self.gram + (rows.T @ rows).double()  # (width, width)
        self.tokens += len(rows)


class Statistic(Protocol):
    def add(self, inputs: Tensor) -> None: ...


StatisticT = TypeVar("StatisticT", bound=Statistic)


@contextmanager
def watched_inputs(model: nn.Module, paths: Sequence[str], statistic: Callable[[], StatisticT]) -> Iterator[dict[str, StatisticT]]:
    """Within the block, the inputs of the modules at `paths` enter the statistics that it yields, one for each path."""
    found = {path: statistic() for path in paths}

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: found[path].add(inputs[0])

    handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_decoder(model: PreTrainedModel, batches: Sequence[Tensor], *, progress: Progress, label: str) -> None:
    """Runs the decoder, without the output head, on every batch; hooks look on."""
    decoder, device = model.get_decoder(), model.device
    for done, batch in enumerate(batches, 1):
        decoder(input_ids=batch.to(device), use_cache=False)
        progress(label, done, len(batches))


@contextmanager
def recomputed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Within the block decoder layers keep their input only and compute again when their gradient is due."""
    layers = list(model.get_decoder().layers)
    for layer in layers:
        forward = layer.forward

        def recomputed(*args: Any, forward: Callable[..., Any] = forward, **kwargs: Any) -> Any:
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        layer.forward = recomputed
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
