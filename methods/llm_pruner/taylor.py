"""Taylor importance of the rows and columns of weight matrices, reduced where the gradient arises.

Each matrix that takes part gets a hook that runs when its gradient is ready, reduces it to one number a row or column and
drops it, so that no second copy of the model is ever held; layers compute their activations again in the backward pass,
so that these are held for one layer at a time. Weights and gradients are taken to float32 first: squared
gradients underflow in half precision.

With w a weight, g its gradient of the mean next-token loss of a batch, and F the mean over samples of its squared
per-sample gradient (diagonal Fisher), a row or column i that holds the weights S_i scores (LLM-Pruner, arXiv 2305.11627, eqs. 3-5):

    vector   | sum_S w g |
    first    sum_S | w g |
    second   sum_S   w^2 F
    mix      sum_S | w g - w^2 F / 2 |

Several batches: the signed sums of "vector" and the squares of "second" add up over batches, which is exact; "first" and
"mix" take the absolute value in each batch and add these (weighted to the mean of the set), so that nothing of the size
of the model is kept. With the paper's 10 samples in one batch both readings are the same. "mix" needs g and F of the same
element at once: it keeps F of every second matrix, scores these, and starts again with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.methods.layerwise import recomputed_layers
from prunebench.methods.pruner import Progress

Importance = Literal["vector", "first", "second", "mix"]
HALF_PRECISION_SCALE = 2.0**12  # of the loss of a float16 model, taken back in float32


@dataclass
class Site:
    """One slice of one parameter whose indices are scored.

    Attributes:
        parameter: path of the weight; start, count: its rows (or columns) [start, start + count).
        by: "rows" scores rows (output units), "columns" scores columns (input units), "entries" those of a vector.
        score: (count,) float64 on the CPU; signed sums while "vector" is being accumulated.
    """

    parameter: str
    start: int
    count: int
    by: Literal["rows", "columns", "entries"]
    score: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.score = torch.zeros(self.count, dtype=torch.float64)

    def add(self, terms: Tensor) -> None:
        """Adds the sums over each index of `terms`, which has the shape of the whole parameter."""
        if self.by == "columns":
            part = terms[:, self.start : self.start + self.count].sum(0)
        else:
            part = terms[self.start : self.start + self.count]
            part = part.sum(1) if self.by == "rows" else part
        self.score += part.double().cpu()


def score_sites(
    model: PreTrainedModel, sites: Sequence[Site], samples: Tensor, importance: Importance, *, batch_size: int, progress: Progress
) -> None:
    """Fills `site.score` with the Taylor importance on the calibration samples.

    Args:
        samples: (num_samples, seq_len) token ids.
        batch_size: samples of one backward pass ("second" and the Fisher pass of "mix" take one at a time).
        progress: called after each backward pass.

    Raises:
        ValueError: a loss or a gradient is not finite; says where.
    """
    by_parameter: dict[str, list[Site]] = {}
    for site in sites:
        by_parameter.setdefault(site.parameter, []).append(site)
    fisher: dict[str, Tensor] = {}

    def add_terms(name: str, terms: Tensor) -> None:
        for site in by_parameter[name]:
            site.add(terms)

    def add_fisher(name: str, weight: Tensor, gradient: Tensor) -> None:
        square = gradient.square_().div_(len(samples))
        if importance == "second":
            add_terms(name, square.mul_(weight.square()))
        elif name in fisher:
            fisher[name] += square
        else:
            fisher[name] = square

    def add_first(name: str, weight: Tensor, gradient: Tensor) -> None:
        terms = gradient.mul_(weight)
        if importance == "mix":
            terms -= 0.5 * weight.square() * fisher[name]
        add_terms(name, terms if importance == "vector" else terms.abs_())

    names = list(by_parameter)
    for part in filter(None, (names[::2], names[1::2]) if importance == "mix" else (names,)):
        if importance in ("second", "mix"):
            _backward_each(model, part, samples.split(1), 1, add_fisher, "Fisher information", progress)
        if importance != "second":
            _backward_each(model, part, samples.split(batch_size), len(samples), add_first, "gradients", progress)
        fisher.clear()
    for site in sites:
        site.score.abs_()
        if not torch.isfinite(site.score).all():
            raise ValueError(f"Taylor scores of {site.parameter} are not finite")


def _backward_each(
    model: PreTrainedModel,
    parameters: Sequence[str],
    batches: Sequence[Tensor],
    samples_of_mean: int,
    visit: Callable[[str, Tensor, Tensor], None],
    label: str,
    progress: Progress,
) -> None:
    """One backward pass a batch; `visit(name, weight, gradient)` gets float32 tensors, of which it may reuse the gradient.

    The gradient is that of the batch's summed sample losses over `samples_of_mean`.
    """
    scale = HALF_PRECISION_SCALE if model.dtype == torch.float16 else 1.0

    def receive(name: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None  # the hook runs when it is there
        parameter.grad = None
        visit(name, parameter.detach().float(), gradient.float().div_(scale) if scale != 1 else gradient.float())

    with torch.enable_grad(), _gradients_of(model, parameters, receive), recomputed_layers(model):
        for done, batch in enumerate(batches, 1):
            loss = next_token_loss(model, batch)
            if not torch.isfinite(loss):
                raise ValueError(f"the loss of calibration batch {done} is {loss.item()}")
            (loss * (scale * len(batch) / samples_of_mean)).backward()
            progress(label, done, len(batches))


def next_token_loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy of (batch, length) tokens, in float32."""
    tokens = tokens.to(model.device)
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], dim=1)  # no copy of the logits without the last
    logits = model(input_ids=tokens, use_cache=False).logits  # (batch, length, vocabulary)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().to(logits.device))


@contextmanager
def _gradients_of(model: nn.Module, names: Sequence[str], receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block exactly `names` get gradients, each handed to `receive` once it is whole."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    handles = []
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        for name in names:
            parameter = model.get_parameter(name)
            handles.append(parameter.register_post_accumulate_grad_hook(lambda p, name=name: receive(name, p)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            if name in names:
                parameter.grad = None
