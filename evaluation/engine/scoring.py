"""Log-likelihoods of token sequences under a causal LM: one packed forward pass a row, logits where they are scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunebench.evaluation.engine.attention import PackedRow, Prefix, active_row, segment_cost, tree_attention
from prunebench.evaluation.engine.head import Head
from prunebench.evaluation.engine.prefix_tree import (
    PrefixEnd,
    PrefixStep,
    RowBudget,
    RowStep,
    Step,
    Unit,
    build_tree,
    chain_unit,
    plan,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

CPU_ROW_TOKENS = 1024
"""Distinct tokens a row holds on a CPU: large enough for efficient matrix products, small enough for the caches."""

LARGEST_ROW_TOKENS = 16384
"""Upper bound of a row on an accelerator."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ScoreRequest:
    """Score `targets` at the last `len(targets)` positions of `inputs` (which ends before the last target)."""

    inputs: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True)
class Score:
    """log_probs: (len(targets),) float64, natural logarithm. is_greedy: each target was the arg-max."""

    log_probs: np.ndarray
    is_greedy: bool

    @property
    def total(self) -> float:
        return float(self.log_probs.sum())


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error, or the CPU allocator's, which is a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def default_row_tokens(model: PreTrainedModel) -> int:
    """Row size for the memory at hand: half of what is free, counted at the widest point of a forward pass."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return CPU_ROW_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    config = model.config
    per_token = 4 * (2 * config.vocab_size + 16 * config.hidden_size + 4 * getattr(config, "intermediate_size", 0))
    return int(max(CPU_ROW_TOKENS, min(LARGEST_ROW_TOKENS, free / 2 / per_token)))


class Scorer:
    """Scores requests over a prefix tree; halves rows that don't fit into memory and grows them again."""

    def __init__(self, model: PreTrainedModel, row_tokens: int | None = None, uses_own_head: bool = False) -> None:
        self.model = model
        self.head = None if uses_own_head else Head.of(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.largest_row = row_tokens or default_row_tokens(model)
        self.budget = RowBudget(self.largest_row)
        self.tokens_computed = 0
        self.windows: set[int] = set()  # those that the model handed to the attention interface
        self._rows_since_halving = 0

    def score(self, requests: Sequence[ScoreRequest], progress: Callable[[int, int], None] | None = None) -> list[Score]:
        """One `Score` a request, in order.

        Args:
            progress: called with (sequences finished, sequences in all); equal inputs count once.
        """
        batch = _Batch(requests)
        with torch.inference_mode(), tree_attention(self.model):
            self._run(plan([build_tree(batch.sequences)], 0, self.budget), [], batch, progress)
        return batch.scores()

    def _run(
        self,
        steps: object,
        prefixes: list[Prefix],
        batch: _Batch,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        depth = len(prefixes)
        for step in steps:  # type: ignore[attr-defined]
            if isinstance(step, PrefixEnd):
                prefixes.pop()
                continue
            try:
                self._run_step(step, prefixes, batch)
            except Exception as error:
                if not is_out_of_memory(error) or not self._halve(step):
                    raise
            else:
                self._grow()
                if progress is not None and isinstance(step, RowStep):
                    progress(batch.finished, len(batch.sequences))
                continue
            if isinstance(step, RowStep):  # out of memory: the same subtrees again, in smaller rows
                self._run(plan(step.nodes, step.first_depth, self.budget), prefixes, batch, progress)
        del prefixes[depth:]

    def _halve(self, step: Step) -> bool:
        """True when smaller rows can help: a single chain can't be made smaller."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        single = isinstance(step, RowStep) and len(step.nodes) == 1 and not step.nodes[0].children
        if not isinstance(step, RowStep) or single:
            return False
        size = sum(node.size + node.start - step.first_depth for node in step.nodes)
        self.budget.tokens = max(1, min(size, self.budget.tokens) // 2)
        self._rows_since_halving = 0
        log.info("out of memory in a row of %d tokens; rows now hold %d", size, self.budget.tokens)
        return True

    def _grow(self) -> None:
        self._rows_since_halving += 1
        if self.budget.tokens < self.largest_row and self._rows_since_halving >= 8:
            self.budget.tokens = min(self.largest_row, self.budget.tokens * 2)
            self._rows_since_halving = 0

    def _run_step(self, step: PrefixStep | RowStep, prefixes: list[Prefix], batch: _Batch) -> None:
        prefix = prefixes[-1] if prefixes else None
        if isinstance(step, PrefixStep):
            n = len(step.tokens)
            unit = chain_unit(step.tokens, step.first_depth)
            row = PackedRow([unit], prefix, self.device, self.dtype)
            row.keep()
            wanted = batch.wanted_inside(step.sequences, step.first_depth, step.first_depth + n)
            self._forward(row, wanted, batch)
            prefixes.append(extend_prefix(prefix, row))
            return
        units = step.units(segment_cost(self.device))
        wanted = []
        start = 0
        for unit in units:
            wanted += batch.wanted_in_unit(unit, start)
            start += len(unit)
        self._forward(PackedRow(units, prefix, self.device, self.dtype), wanted, batch)
        batch.finished += sum(len(unit.paths) for unit in units)

    def _forward(self, row: PackedRow, wanted: list[tuple[int, int, int]], batch: _Batch) -> None:
        """`wanted`: (index in the row, target token, result slot)."""
        positions = sorted({index for index, _, _ in wanted})
        self.tokens_computed += sum(len(unit) for unit in row.units)
        place = {index: i for i, index in enumerate(positions)}
        rows = torch.tensor([place[index] for index, _, _ in wanted], device=self.device)
        targets = torch.tensor([target for _, target, _ in wanted], device=self.device)
        if self.head is None:
            logits = forward_row(self.model, row, positions)
            if not wanted:
                return
            log_probs, greedy = score_logits(logits, rows.to(logits.device), targets.to(logits.device))
        else:
            hidden = forward_hidden(self.model, row)
            if not wanted:
                return
            hidden = hidden[torch.tensor(positions, device=hidden.device)]
            log_probs, greedy = self.head.score(hidden, rows, targets)
        self.windows |= row.windows
        slots = np.fromiter((slot for _, _, slot in wanted), dtype=np.int64, count=len(wanted))
        batch.log_probs[slots] = log_probs.cpu().numpy()
        batch.greedy[slots] = greedy.cpu().numpy()


def score_logits(logits: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and whether it is the arg-max.

    Args:
        logits: (positions, vocabulary), any float dtype; overwritten where it is float32.
        rows, targets: (k,) position and token of each score.
    Returns:
        (k,) float64 natural logarithms, (k,) bool.
    """
    logits = logits.float()
    highest, winners = logits.max(-1)
    chosen = logits[rows, targets] - highest[rows]
    normaliser = logits.sub_(highest[:, None]).exp_().sum(-1).log_()
    return chosen.double() - normaliser[rows].double(), winners[rows] == targets


def extend_prefix(prefix: Prefix | None, row: PackedRow) -> Prefix:
    """The prefix that follows `prefix` by the tokens of `row`, which kept its keys and values."""
    assert row.kept is not None
    longer = Prefix(row.prefix_length + sum(len(unit) for unit in row.units))
    for key, (own_keys, own_values) in row.kept.items():
        if prefix is not None:
            before = prefix.layers[key]
            longer.layers[key] = (torch.cat([before[0], own_keys], 2), torch.cat([before[1], own_values], 2))
        else:
            longer.layers[key] = (own_keys.contiguous(), own_values.contiguous())
    return longer


def forward_row(model: PreTrainedModel, row: PackedRow, positions: Sequence[int]) -> Tensor:
    """Logits (len(positions), vocabulary) of a packed row at the given indices."""
    ids, depths = _row_tensors(row)
    keep = torch.tensor(list(positions) or [0], device=row.device)
    with active_row(row):
        output = model(input_ids=ids, position_ids=depths, use_cache=False, logits_to_keep=keep)
    return output.logits[0]


def forward_hidden(model: PreTrainedModel, row: PackedRow) -> Tensor:
    """Hidden states (tokens, hidden) of a packed row, after the last norm."""
    ids, depths = _row_tensors(row)
    with active_row(row):
        output = model.base_model(input_ids=ids, position_ids=depths, use_cache=False)
    return output.last_hidden_state[0]


def _row_tensors(row: PackedRow) -> tuple[Tensor, Tensor]:
    """Ids and positions, (1, tokens) each."""
    ids = np.concatenate([unit.tokens for unit in row.units])
    depths = np.concatenate([unit.depths for unit in row.units])
    return torch.as_tensor(ids, device=row.device)[None], torch.as_tensor(depths, device=row.device)[None]


class _Batch:
    """Requests, their distinct input sequences, and the flat result arrays."""

    def __init__(self, requests: Sequence[ScoreRequest]) -> None:
        self.requests = requests
        self.sequences: list[Sequence[int]] = []
        self.members: list[list[int]] = []  # sequence -> requests
        places: dict[tuple[int, ...], int] = {}
        for index, request in enumerate(requests):
            key = tuple(request.inputs)
            if key not in places:
                places[key] = len(self.sequences)
                self.sequences.append(key)
                self.members.append([])
            self.members[places[key]].append(index)
        lengths = [len(request.targets) for request in requests]
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.log_probs = np.full(int(self.offsets[-1]), np.nan)
        self.greedy = np.zeros(int(self.offsets[-1]), dtype=bool)
        self.first_scored = np.array(
            [len(sequence) - max(lengths[i] for i in members) for sequence, members in zip(self.sequences, self.members, strict=True)],
            dtype=np.int64,
        )
        self.finished = 0

    def wanted_inside(self, sequences: list[int], low: int, high: int) -> list[tuple[int, int, int]]:
        """Scores that fall on the path positions low..high of these sequences, indexed from `low`."""
        found = []
        for sequence in sequences:
            if self.first_scored[sequence] < high:
                found += self._wanted(sequence, range(high - low), low, high, 0)
        return found

    def wanted_in_unit(self, unit: Unit, start: int) -> list[tuple[int, int, int]]:
        """Scores of the sequences that end in this unit, whose tokens begin at index `start` of the row."""
        found = []
        for sequence, path in unit.paths.items():
            found += self._wanted(sequence, path, unit.first_depth, unit.first_depth + len(path), start)
        return found

    def _wanted(self, sequence: int, path: Sequence[int] | np.ndarray, low: int, high: int, start: int) -> list[tuple[int, int, int]]:
        length = len(self.sequences[sequence])
        found = []
        for index in self.members[sequence]:
            targets = self.requests[index].targets
            first = length - len(targets)
            offset = int(self.offsets[index])
            for depth in range(max(first, low), min(length, high)):
                found.append((start + int(path[depth - low]), targets[depth - first], offset + depth - first))
        return found

    def scores(self) -> list[Score]:
        return [
            Score(self.log_probs[low:high], bool(self.greedy[low:high].all()))
            for low, high in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]


def plain_scores(model: PreTrainedModel, requests: Sequence[ScoreRequest], row_tokens: int = CPU_ROW_TOKENS) -> list[Score]:
    """The same scores without sharing: equal inputs once, padded batches, the model's own attention."""
    batch = _Batch(requests)
    device = next(model.parameters()).device
    order = sorted(range(len(batch.sequences)), key=lambda i: -len(batch.sequences[i]))
    place = 0
    with torch.inference_mode():
        while place < len(order):
            width = len(batch.sequences[order[place]])
            group = order[place : place + max(1, row_tokens // width)]
            ids = torch.zeros(len(group), width, dtype=torch.long, device=device)
            mask = torch.zeros_like(ids)
            for i, sequence in enumerate(group):
                tokens = batch.sequences[sequence]
                ids[i, : len(tokens)] = torch.tensor(tokens, device=device)
                mask[i, : len(tokens)] = 1
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for i, sequence in enumerate(group):
                length = len(batch.sequences[sequence])
                wanted = batch._wanted(sequence, range(length), 0, length, 0)
                rows = torch.tensor([index for index, _, _ in wanted], device=device)
                targets = torch.tensor([target for _, target, _ in wanted], device=device)
                first = int(rows.min())
                log_probs, greedy = score_logits(logits[i, first:length].clone(), rows - first, targets)
                slots = np.array([slot for _, _, slot in wanted])
                batch.log_probs[slots] = log_probs.cpu().numpy()
                batch.greedy[slots] = greedy.cpu().numpy()
            place += len(group)
    return batch.scores()
