"""Greedy generation for many prompts: shared prefixes once, rows that stop leave at once, new ones take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from prunebench.evaluation.engine.attention import PackedRow, Prefix, active_row, segment_cost, tree_attention
from prunebench.evaluation.engine.prefix_tree import PrefixEnd, PrefixStep, RowBudget, RowStep, Step, build_tree, chain_unit, plan
from prunebench.evaluation.engine.scoring import default_row_tokens, extend_prefix, forward_row, is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_SLOTS = 48
"""Rows decoded together on a CPU: enough that reading the weights no longer dominates a step."""

GPU_SLOTS = 256

NON_FINITE = -1
"""Stands for a token that would have been chosen from logits that aren't numbers."""

FIRST_ROWS = 8
"""Rows that a pool has space for at first."""

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
    """Key/value buffers of the rows that share one prefix; its arrays grow with the rows and their lengths."""

    def __init__(self, prefix: Prefix | None) -> None:
        self.prefix = prefix
        self.capacity = FIRST_ROWS
        self.room = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # id(module) -> (capacity, kv_heads, room, dim) twice
        self.slots: list[_Slot] = []

    def reserve(self, rows: int, length: int) -> None:
        """Space for `rows` rows of `length` tokens."""
        if length <= self.room and rows <= self.capacity:
            return
        while self.capacity < rows:
            self.capacity *= 2
        self.room = max(self.room, -(-length // ROOM_STEP) * ROOM_STEP)
        for key, (keys, values) in self.layers.items():
            self.layers[key] = (self._enlarged(keys), self._enlarged(values))

    def _enlarged(self, buffer: Tensor) -> Tensor:
        larger = buffer.new_zeros(self.capacity, buffer.shape[1], self.room, buffer.shape[3])
        larger[: buffer.shape[0], :, : buffer.shape[2]] = buffer
        return larger

    def add(self, slot: _Slot, kept: dict[int, tuple[Tensor, Tensor]]) -> None:
        """`kept`: own keys and values (1, kv_heads, length, dim) of every layer."""
        row = len(self.slots)
        self.reserve(row + 1, slot.length + 1)
        for key, (own_keys, own_values) in kept.items():
            if key not in self.layers:
                self.layers[key] = tuple(  # type: ignore[assignment]
                    own.new_zeros(self.capacity, own.shape[1], self.room, own.shape[3]) for own in (own_keys, own_values)
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


class _PoolStep:
    """One pool's part of a decoding step: rows `start..stop` of the batch."""

    def __init__(self, pool: _Pool, start: int, device: torch.device) -> None:
        self.pool = pool
        self.start = start
        self.stop = start + len(pool.slots)
        lengths = [slot.length for slot in pool.slots]
        pool.reserve(len(lengths), max(lengths) + 1)
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
        rows, lengths = self.rows.to(key.device), self.lengths.to(key.device)
        keys[rows, :, lengths] = key[:, :, 0]
        values[rows, :, lengths] = value[:, :, 0]
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
        weights = torch.softmax(scores + self.mask(window).to(scores.device), -1).to(value.dtype)
        result = weights[..., self.before :] @ values  # (rows, kv_heads, groups, dim)
        if self.pool.prefix is not None:
            flat = weights[..., : self.before].transpose(0, 1).reshape(kv_heads, count * groups, -1)
            result = result + (flat @ prefix_values[0]).view(kv_heads, count, groups, -1).transpose(0, 1)
        return result.reshape(count, 1, kv_heads * groups, -1)


class _DecodeRow:
    """One token for every row of every pool: the projections run over all rows, the attention pool by pool."""

    def __init__(self, pools: list[_Pool], device: torch.device) -> None:
        self.steps: list[_PoolStep] = []
        start = 0
        for pool in pools:
            self.steps.append(_PoolStep(pool, start, device))
            start += len(pool.slots)

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
        """As `_PoolStep.attend`, over the rows of all pools."""
        parts = []
        for step in self.steps:
            rows = slice(step.start, step.stop)
            parts.append(step.attend(module, query[rows], key[rows], value[rows], scaling, window, softcap))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class Generator:
    """Greedy continuation of many prompts."""

    def __init__(self, model: PreTrainedModel, row_tokens: int | None = None, slots: int | None = None) -> None:
        self.model = model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.budget = RowBudget(row_tokens or default_row_tokens(model))
        self.capacity = slots or (GPU_SLOTS if self.device.type == "cuda" else CPU_SLOTS)
        self.tokens_computed = 0

    def generate(self, requests: Sequence[GenerationRequest], progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
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
        self.pools: list[_Pool] = []
        self.waiting: deque[tuple[_Pool, _Slot, dict[int, tuple[Tensor, Tensor]]]] = deque()

    def run(self) -> None:
        """Prefills along the plan, decoding as soon as all slots are taken; pools live until their rows are done."""
        prefixes: list[Prefix] = []
        bare = _Pool(None)  # for prompts without a shared prefix
        self.pools.append(bare)
        steps: Iterator[Step] = plan([build_tree(self.prompts)], 0, self.owner.budget)
        for step in steps:
            if isinstance(step, PrefixEnd):
                prefixes.pop()
            elif isinstance(step, PrefixStep):
                prefixes.append(self._prefix(step, prefixes[-1] if prefixes else None))
                if len(prefixes) == 1:  # the outermost prefix is the one that rows share
                    self.pools.append(_Pool(prefixes[0]))
                self._start_at_prefix(step, self.pools[-1], prefixes[-1])
            else:
                self._prefill(step, self.pools[-1] if prefixes else bare, prefixes[-1] if prefixes else None)
            while len(self.waiting) + self._active() >= self.owner.capacity:
                self._step()
            current = self.pools[-1]
            self.pools = [pool for pool in self.pools if pool.slots or pool is bare or pool is current]
        while self.waiting or self._active():
            self._step()

    def _active(self) -> int:
        return sum(len(pool.slots) for pool in self.pools)

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
                self._finish(request, [NON_FINITE])
            return
        shared = pool.prefix.length if pool.prefix is not None else 0
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        source = row.kept if row is not None else prefix.layers if prefix is not None else {}
        index = torch.as_tensor(path) if path is not None else None
        for key in source or {}:
            parts: list[tuple[Tensor, Tensor]] = []
            if prefix is not None and prefix.length > shared:
                keys, values = prefix.layers[key]
                parts.append((keys[:, :, shared:], values[:, :, shared:]))
            if row is not None and row.kept is not None:
                keys, values = row.kept[key]
                here = index.to(keys.device) if index is not None else slice(None)
                parts.append((keys[:, :, here], values[:, :, here]))
            if not parts:
                keys, values = prefix.layers[key]  # type: ignore[union-attr]
                parts.append((keys[:, :, :0], values[:, :, :0]))
            kept[key] = (torch.cat([part[0] for part in parts], 2), torch.cat([part[1] for part in parts], 2))
        token = int(logits.argmax())
        length = len(self.prompts[sequence])
        for request in self.members[sequence]:
            slot = _Slot(request, length - shared, length, token)
            if not self._take(slot):
                self.waiting.append((pool, slot, kept))

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

    def _step(self) -> None:
        """Fills free slots, then one token for every row."""
        active = self._active()
        while self.waiting and active < self.owner.capacity:
            pool, slot, kept = self.waiting.popleft()
            if pool not in self.pools:
                self.pools.insert(0, pool)
            pool.add(slot, kept)
            active += 1
        pools = [pool for pool in self.pools if pool.slots]
        if not pools:
            return
        device = self.owner.device
        row = _DecodeRow(pools, device)
        slots = [slot for pool in pools for slot in pool.slots]
        ids = torch.tensor([[slot.next_token] for slot in slots], device=device)  # (rows, 1)
        positions = torch.tensor([[slot.position] for slot in slots], device=device)
        with active_row(row):
            logits = self.owner.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1).logits[:, -1]
        self.owner.tokens_computed += len(slots)
        chosen = logits.argmax(-1).tolist()
        finite = torch.isfinite(logits).all(-1).tolist()
        for step in row.steps:
            for place in range(len(step.pool.slots) - 1, -1, -1):
                slot = step.pool.slots[place]
                slot.length += 1
                slot.position += 1
                slot.next_token = chosen[step.start + place]
                if not finite[step.start + place]:
                    self._finish(slot.request, [NON_FINITE])
                    step.pool.remove(place)
                elif self._take(slot):
                    step.pool.remove(place)
