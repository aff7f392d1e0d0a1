"""Greedy generation for many prompts: shared prefixes once, rows that stop leave at once, new ones take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluation.engine.attention import PackedRow, Prefix, active_row, segment_cost, tree_attention
from evaluation.engine.prefix_tree import PrefixEnd, PrefixStep, RowBudget, RowStep, Step, build_tree, chain_unit, plan
from evaluation.engine.scoring import default_row_tokens, extend_prefix, forward_row, is_out_of_memory

CPU_SLOTS = 48
"""Rows decoded together on a CPU: enough that reading the weights no longer dominates a step."""

GPU_SLOTS = 256

ROOM_STEP = 64
"""Tokens by which the key/value buffers grow."""


@dataclass
class GenerationRequest:
    """Continue `prompt` greedily until `is_finished(new tokens)` or `max_new_tokens`."""

    prompt: Sequence[int]
    max_new_tokens: int
    is_finished: Callable[[list[int]], bool]


@dataclass
class _Slot:
    """One sequence being decoded. `length` counts its own kept tokens, behind the shared prefix."""

    request: int
    length: int
    position: int
    next_token: int
    generated: list[int] = field(default_factory=list)


class _Pool:
    """Key/value buffers of the rows being decoded together, all behind one shared prefix."""

    def __init__(self, prefix: Prefix | None, capacity: int) -> None:
        self.prefix = prefix
        self.capacity = capacity
        self.room = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # id(module) -> (capacity, kv_heads, room, dim) twice
        self.slots: list[_Slot] = []

    def reserve(self, length: int) -> None:
        """Room for `length` tokens a row."""
        if length <= self.room:
            return
        room = -(-length // ROOM_STEP) * ROOM_STEP
        for key, (keys, values) in self.layers.items():
            self.layers[key] = (_widened(keys, room), _widened(values, room))
        self.room = room

    def add(self, slot: _Slot, kept: dict[int, tuple[Tensor, Tensor]]) -> None:
        """`kept`: own keys and values (1, kv_heads, length, dim) of every layer."""
        self.reserve(slot.length + 1)
        row = len(self.slots)
        for key, (own_keys, own_values) in kept.items():
            if key not in self.layers:
                self.layers[key] = tuple(  # type: ignore[assignment]
                    own.new_zeros(self.capacity, own.shape[1], self.room, own.shape[3])
                    for own in (own_keys, own_values)
                )
            keys, values = self.layers[key]
            keys[row, :, : slot.length] = own_keys[0]
            values[row, :, : slot.length] = own_values[0]
        self.slots.append(slot)

    def remove(self, row: int) -> None:
        """The last row takes the freed place."""
        last = len(self.slots) - 1
        if row != last:
            length = self.slots[last].length
            for keys, values in self.layers.values():
                keys[row, :, :length] = keys[last, :, :length]
                values[row, :, :length] = values[last, :, :length]
            self.slots[row] = self.slots[last]
        self.slots.pop()


def _widened(buffer: Tensor, room: int) -> Tensor:
    wider = buffer.new_zeros(buffer.shape[0], buffer.shape[1], room, buffer.shape[3])
    wider[:, :, : buffer.shape[2]] = buffer
    return wider


class _DecodeRow:
    """One token for every row of the pool."""

    def __init__(self, pool: _Pool, device: torch.device) -> None:
        self.pool = pool
        lengths = [slot.length for slot in pool.slots]
        pool.reserve(max(lengths) + 1)
        self.device = device
        self.rows = torch.arange(len(lengths), device=device)
        self.lengths = torch.tensor(lengths, device=device)
        self.longest = max(lengths) + 1
        self.before = pool.prefix.length if pool.prefix is not None else 0
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        """(rows, 1, 1, prefix + longest) additive float32."""
        if window not in self._masks:
            place = torch.arange(self.before + self.longest, device=self.device)
            position = (self.before + self.lengths)[:, None]
            sees = place[None, :] <= position  # own tokens follow the prefix without a gap
            if window is not None:
                sees &= position - place[None, :] < window
            mask = torch.zeros(sees.shape, device=self.device).masked_fill_(~sees, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """query (rows, heads, 1, dim), key and value (rows, kv_heads, 1, dim) -> (rows, 1, heads, dim)."""
        keys, values = self.pool.layers[id(module)]
        count, kv_heads = key.shape[0], key.shape[1]
        keys[self.rows, :, self.lengths] = key[:, :, 0]
        values[self.rows, :, self.lengths] = value[:, :, 0]
        keys, values = keys[:count, :, : self.longest], values[:count, :, : self.longest]
        groups = query.shape[1] // kv_heads
        query = query.reshape(count, kv_heads, groups, -1)
        scores = query @ keys.transpose(2, 3)  # (rows, kv_heads, groups, longest)
        if self.pool.prefix is not None:
            prefix_keys, prefix_values = self.pool.prefix.layers[id(module)]
            flat = query.transpose(0, 1).reshape(kv_heads, count * groups, -1)
            shared = (flat @ prefix_keys[0].transpose(1, 2)).view(kv_heads, count, groups, -1).transpose(0, 1)
            scores = torch.cat([shared, scores], -1)
        scores = scores.float() * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores + self.mask(window), -1).to(value.dtype)
        result = weights[..., self.before :] @ values  # (rows, kv_heads, groups, dim)
        if self.pool.prefix is not None:
            flat = weights[..., : self.before].transpose(0, 1).reshape(kv_heads, count * groups, -1)
            result = result + (flat @ prefix_values[0]).view(kv_heads, count, groups, -1).transpose(0, 1)
        return result.reshape(count, 1, kv_heads * groups, -1)


class Generator:
    """Greedy continuation of many prompts."""

    def __init__(self, model: PreTrainedModel, row_tokens: int | None = None, slots: int | None = None) -> None:
        self.model = model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.budget = RowBudget(row_tokens or default_row_tokens(model))
        self.capacity = slots or (GPU_SLOTS if self.device.type == "cuda" else CPU_SLOTS)
        self.tokens_computed = 0

    def generate(
        self, requests: Sequence[GenerationRequest], progress: Callable[[int, int], None] | None = None
    ) -> list[list[int]]:
        """New tokens of every request, the token that finished it included.

        When memory runs out, the requests that aren't finished start again with half the rows.
        """
        results: list[list[int] | None] = [None] * len(requests)
        while True:
            open_requests = [index for index, result in enumerate(results) if result is None]
            if not open_requests:
                return [result for result in results if result is not None]
            try:
                with torch.inference_mode(), tree_attention(self.model):
                    _Run(self, requests, open_requests, results, progress).run()
            except Exception as error:
                if not is_out_of_memory(error) or self.capacity == 1:
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                self.capacity = max(1, self.capacity // 2)
                self.budget.tokens = max(1, self.budget.tokens // 2)


class _Run:
    """One pass over a set of requests."""

    def __init__(
        self,
        owner: Generator,
        requests: Sequence[GenerationRequest],
        chosen: list[int],
        results: list[list[int] | None],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.owner = owner
        self.requests = requests
        self.results = results
        self.progress = progress
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index in chosen:
            by_prompt.setdefault(tuple(requests[index].prompt), []).append(index)
        self.prompts = list(by_prompt)
        self.members = list(by_prompt.values())
        self.waiting: deque[tuple[_Slot, dict[int, tuple[Tensor, Tensor]]]] = deque()

    def run(self) -> None:
        prefixes: list[Prefix] = []
        pool = _Pool(None, self.owner.capacity)
        steps: Iterator[Step] = plan([build_tree(self.prompts)], 0, self.owner.budget)
        for step in steps:
            if isinstance(step, PrefixEnd):
                prefixes.pop()
                continue
            if isinstance(step, PrefixStep) and not prefixes:  # the outermost prefix is the one that rows share
                self._drain(pool)
                prefixes.append(self._prefix(step, None))
                pool = _Pool(prefixes[0], self.owner.capacity)
                self._start_at_prefix(step, pool, prefixes[0])
                continue
            if isinstance(step, PrefixStep):
                prefixes.append(self._prefix(step, prefixes[-1]))
                self._start_at_prefix(step, pool, prefixes[-1])
                continue
            if not prefixes and pool.prefix is not None:
                self._drain(pool)
                pool = _Pool(None, self.owner.capacity)
            self._prefill(step, pool, prefixes[-1] if prefixes else None)
            while len(self.waiting) + len(pool.slots) >= self.owner.capacity:
                self._step(pool)
        self._drain(pool)

    def _prefix(self, step: PrefixStep, before: Prefix | None) -> Prefix:
        n = len(step.tokens)
        row = PackedRow([chain_unit(step.tokens, step.first_depth)], before, self.owner.device, self.owner.dtype)
        row.keep()
        self._last_logits = forward_row(self.owner.model, row, [n - 1])
        self.owner.tokens_computed += n
        return extend_prefix(before, row)

    def _start_at_prefix(self, step: PrefixStep, pool: _Pool, prefix: Prefix) -> None:
        """A prompt that ends with the prefix itself starts from the prefix's last logits."""
        for sequence in step.sequences:
            if len(self.prompts[sequence]) == prefix.length:
                self._enqueue(sequence, pool, prefix, None, None, self._last_logits[0])

    def _prefill(self, step: RowStep, pool: _Pool, prefix: Prefix | None) -> None:
        units = step.units(segment_cost(self.owner.device))
        row = PackedRow(units, prefix, self.owner.device, self.owner.dtype)
        row.keep()
        found: list[tuple[int, np.ndarray]] = []
        start = 0
        for unit in units:
            found += [(sequence, start + path) for sequence, path in unit.paths.items()]
            start += len(unit)
        logits = forward_row(self.owner.model, row, [int(path[-1]) for _, path in found])
        self.owner.tokens_computed += start
        for place, (sequence, path) in enumerate(found):
            self._enqueue(sequence, pool, prefix, row, path, logits[place])

    def _enqueue(
        self,
        sequence: int,
        pool: _Pool,
        prefix: Prefix | None,
        row: PackedRow | None,
        path: np.ndarray | None,
        logits: Tensor,
    ) -> None:
        """Own keys and values: inner prefixes behind the pool's, then the sequence's own path in the row."""
        if not torch.isfinite(logits).all():
            for request in self.members[sequence]:
                self._finish(request, [-1])
            return
        shared = pool.prefix.length if pool.prefix is not None else 0
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        source = row.kept if row is not None else prefix.layers if prefix is not None else {}
        index = torch.as_tensor(path, device=self.owner.device) if path is not None else None
        for key in source or {}:
            parts: list[tuple[Tensor, Tensor]] = []
            if prefix is not None and prefix.length > shared:
                keys, values = prefix.layers[key]
                parts.append((keys[:, :, shared:], values[:, :, shared:]))
            if row is not None and row.kept is not None:
                keys, values = row.kept[key]
                parts.append((keys[:, :, index], values[:, :, index]))
            if not parts:
                keys, values = prefix.layers[key]  # type: ignore[union-attr]
                parts.append((keys[:, :, :0], values[:, :, :0]))
            kept[key] = (torch.cat([part[0] for part in parts], 2), torch.cat([part[1] for part in parts], 2))
        token = int(logits.argmax())
        length = len(self.prompts[sequence])
        for request in self.members[sequence]:
            slot = _Slot(request, length - shared, length, token)
            if not self._take(slot):
                self.waiting.append((slot, kept))

    def _take(self, slot: _Slot) -> bool:
        """Adds the chosen token; True when the sequence is finished by it."""
        request = self.requests[slot.request]
        slot.generated.append(slot.next_token)
        if len(slot.generated) >= request.max_new_tokens or request.is_finished(slot.generated):
            self._finish(slot.request, slot.generated)
            return True
        return False

    def _finish(self, request: int, generated: list[int]) -> None:
        self.results[request] = generated
        if self.progress is not None:
            self.progress(sum(result is not None for result in self.results), len(self.results))

    def _step(self, pool: _Pool) -> None:
        while self.waiting and len(pool.slots) < pool.capacity:
            slot, kept = self.waiting.popleft()
            pool.add(slot, kept)
        if not pool.slots:
            return
        device = self.owner.device
        row = _DecodeRow(pool, device)
        ids = torch.tensor([[slot.next_token] for slot in pool.slots], device=device)  # (rows, 1)
        positions = torch.tensor([[slot.position] for slot in pool.slots], device=device)
        with active_row(row):
            logits = self.owner.model(
                input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        self.owner.tokens_computed += len(pool.slots)
        chosen = logits.argmax(-1).tolist()
        finite = torch.isfinite(logits).all(-1).tolist()
        for place in range(len(pool.slots) - 1, -1, -1):
            slot = pool.slots[place]
            slot.length += 1
            slot.position += 1
            slot.next_token = chosen[place]
            if not finite[place]:
                self._finish(slot.request, [-1])
                pool.remove(place)
            elif self._take(slot):
                pool.remove(place)

    def _drain(self, pool: _Pool) -> None:
        while self.waiting or pool.slots:
            self._step(pool)
