"""Block influence: removes the layers, or the attention and MLP sub-layers, that change the residual stream least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunebench.methods.allocation import SubLayer, remove_blocks, remove_sublayers
from prunebench.methods.data import PruningData
from prunebench.methods.layerwise import run_decoder
from prunebench.methods.magnitude import magnitude_scores
from prunebench.methods.pruner import Pruner, PrunerConfig, Run
from prunebench.methods.registry import register
from prunebench.models.anatomy import Anatomy
from prunebench.models.budget import Budget
from prunebench.models.masks import Masks

Measure = Literal["cosine", "relative_l2"]


class BlockInfluenceConfig(PrunerConfig):
    unit: Literal["blocks", "sublayers"] = Field("blocks", description="whole layers (ShortGPT), or attention and MLP separately")
    choice: Literal["lowest", "window"] = Field(
        "lowest", description="the least influential units, or the contiguous run of whole blocks over which the stream changes least"
    )
    measure: Measure = Field("cosine", description="1 - cosine of the stream before and after, or |after - before| / |before|")
    skip_tokens: int = Field(
        1, ge=0, description="tokens at the start of a sample that don't count: the first one attracts attention and has a huge norm"
    )
    protect_first: int | None = Field(None, ge=0, description="layers at the start that stay; None: 1 where there are at least 8 layers")
    protect_last: int | None = Field(None, ge=0, description="layers at the end that stay; None: 1 where there are at least 8 layers")
    batch_size: int = Field(8, ge=1, description="samples of one forward pass; does not change the result")


@register("block_influence")
class BlockInfluence(Pruner[BlockInfluenceConfig]):
    """Depth pruning by block influence, BI = 1 - mean over tokens of cos(stream before, stream after); one forward pass.

    A budget is finer than a layer: the next layer in the order gives up MLP channels of the smallest output norm for the
    rest (see `remove_blocks`). No weight changes.
    Source: ShortGPT, arXiv 2403.03853; sub-layers, relative L2 and sliding window as in EvoPress' baselines (arXiv 2410.14649).
    """

    Config = BlockInfluenceConfig

    def prune(self, model: PreTrainedModel, budget: Budget, data: PruningData, run: Run) -> Masks:
        samples = data.require_calibration("block_influence", model)
        anatomy = Anatomy.from_model(model)
        influence = Influence(anatomy, self.config.measure, self.config.skip_tokens)
        with influence.watching(model, pairs=self.config.choice == "window"):
            run_decoder(model, samples.split(self.config.batch_size), progress=run.progress, label="influence")
        layers = self._removable(len(anatomy.layers))
        norms = magnitude_scores(model, anatomy, norm="l2", members="output").ffn
        if self.config.choice == "window":
            return remove_blocks(anatomy, budget, window_order(influence.between(), layers, anatomy, budget), norms)
        scores = influence.scores()
        if self.config.unit == "blocks":
            return remove_blocks(anatomy, budget, sorted(layers, key=lambda i: (scores["block"][i], i)), norms)
        kinds: tuple[SubLayer, SubLayer] = ("attn", "mlp")
        units = [(kind, i) for kind in kinds for i in layers]
        return remove_sublayers(anatomy, budget, sorted(units, key=lambda unit: scores[unit[0]][unit[1]]), norms)

    def _removable(self, num_layers: int) -> list[int]:
        usual = 1 if num_layers >= 8 else 0
        first = usual if self.config.protect_first is None else self.config.protect_first
        last = usual if self.config.protect_last is None else self.config.protect_last
        return list(range(first, num_layers - last))


class Influence:
    """Mean influence per token of every layer, attention and MLP, accumulated while the decoder runs."""

    def __init__(self, anatomy: Anatomy, measure: Measure, skip_tokens: int) -> None:
        self._anatomy, self._measure, self._skip = anatomy, measure, skip_tokens
        num_layers = len(anatomy.layers)
        self._sums = {kind: torch.zeros(num_layers, dtype=torch.float64) for kind in ("block", "attn", "mlp")}
        self._between = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
        self._tokens = 0
        self._stream: list[Tensor] = []  # of the batch that runs: the stream before each layer
        self._middle: Tensor | None = None

    def scores(self) -> dict[str, list[float]]:
        """By kind of unit, one number a layer; smaller means that less is lost without it."""
        return {kind: (sums / max(self._tokens, 1)).tolist() for kind, sums in self._sums.items()}

    def between(self) -> Tensor:
        """(layers + 1, layers + 1): influence of all layers from i to before j together."""
        return self._between / max(self._tokens, 1)

    @contextmanager
    def watching(self, model: PreTrainedModel, *, pairs: bool) -> Iterator[None]:
        """Within the block every forward pass counts; `pairs` also compares all pairs of layers, for `between`."""
        handles = []
        for layer in self._anatomy.layers:
            module = model.get_submodule(layer.path)
            handles.append(module.register_forward_pre_hook(self._on_entry, with_kwargs=True))
            handles.append(module.register_forward_hook(self._on_exit(layer.index, pairs)))
            if layer.mlp:  # whichever of these comes first in the forward pass sees the stream between the sub-layers
                for path in (*layer.mlp.norms, layer.mlp.path):
                    handles.append(model.get_submodule(path).register_forward_pre_hook(self._on_middle))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stream.append((args[0] if args else kwargs["hidden_states"]).detach())
        self._middle = None

    def _on_middle(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._middle is None:
            self._middle = args[0].detach()

    def _on_exit(self, index: int, pairs: bool) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before, after = self._stream[-1], output[0] if isinstance(output, tuple) else output
            middle = after if self._middle is None else self._middle
            for kind, left, right in (("block", before, after), ("attn", before, middle), ("mlp", middle, after)):
                self._sums[kind][index] += self._sum(left, right)
            if pairs:
                for start, earlier in enumerate(self._stream):
                    self._between[start, index + 1] += self._sum(earlier, after)
            if index == len(self._anatomy.layers) - 1:
                self._tokens += after[:, self._skip :, 0].numel()
                self._stream = []
            elif not pairs:
                self._stream = self._stream[-1:]

        return hook

    def _sum(self, before: Tensor, after: Tensor) -> float:
        before, after = before[:, self._skip :].double(), after[:, self._skip :].to(before.device).double()
        if self._measure == "cosine":
            return float((1 - F.cosine_similarity(before, after, dim=-1)).sum())
        return float(((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-30)).sum())


def window_order(between: Tensor, layers: list[int], anatomy: Anatomy, budget: Budget) -> list[int]:
    """The contiguous run of layers over which the stream changes least, then the others from the nearest one on.

    The run holds as many whole layers as the budget takes.
    """
    costs = [
        anatomy.attention_params(i, heads, groups, anatomy.hidden_size).of(budget.basis)
        + anatomy.mlp_params(i, channels, anatomy.hidden_size).of(budget.basis)
        for i, (heads, groups, channels) in ((layer.index, anatomy.layer_sizes(layer.index)) for layer in anatomy.layers)
    ]
    target = budget.params_to_remove(anatomy)
    best: tuple[int, float, list[int]] | None = None
    for start in range(len(layers)):
        run: list[int] = []
        while start + len(run) < len(layers) and sum(costs[i] for i in run) + costs[layers[start + len(run)]] <= target:
            run.append(layers[start + len(run)])
        change = float(between[layers[start], layers[start] + len(run)])
        if best is None or (-len(run), change) < best[:2]:
            best = (-len(run), change, run)
    run = best[2] if best else []
    end = run[-1] if run else layers[0]
    return run + sorted((i for i in layers if i not in run), key=lambda i: (abs(i - end), -i))
