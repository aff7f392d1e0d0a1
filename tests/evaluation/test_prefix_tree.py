"""The planner computes every distinct token once and lets every token see exactly its own past."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunebench.evaluation.engine.attention import PackedRow
from prunebench.evaluation.engine.prefix_tree import (
    SHORTEST_PREFIX,
    PrefixEnd,
    PrefixStep,
    RowBudget,
    RowStep,
    build_tree,
    chain_unit,
    make_unit,
    plan,
)

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=14)


def distinct_prefixes(sequences: list[list[int]]) -> int:
    return len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})


@given(SEQUENCES, st.integers(1, 40), st.sampled_from([0, 5, 10**6]))
@settings(max_examples=150, deadline=None)
def test_every_sequence_is_rebuilt_from_prefixes_and_its_path(sequences: list[list[int]], row_tokens: int, segment_cost: int) -> None:
    open_prefixes: list[list[int]] = []
    found: dict[int, list[int]] = {}
    unique = [list(s) for s in dict.fromkeys(map(tuple, sequences))]
    for step in plan([build_tree(unique)], 0, RowBudget(row_tokens)):
        before = [token for tokens in open_prefixes for token in tokens]
        if isinstance(step, PrefixEnd):
            open_prefixes.pop()
        elif isinstance(step, PrefixStep):
            assert step.first_depth == len(before)
            open_prefixes.append(list(step.tokens))
            whole = before + list(step.tokens)
            for index in step.sequences:
                assert unique[index][: len(whole)] == whole
                if len(unique[index]) == len(whole):
                    found[index] = whole
        else:
            for unit in step.units(segment_cost):
                for index, path in unit.paths.items():
                    assert list(unit.depths[path]) == list(range(len(before), len(unique[index])))
                    found[index] = before + [int(t) for t in unit.tokens[path]]
    assert [found[i] for i in range(len(unique))] == unique


@given(SEQUENCES)
@settings(max_examples=60, deadline=None)
def test_one_row_holds_every_distinct_token_once(sequences: list[list[int]]) -> None:
    (step,) = list(plan([build_tree(sequences)], 0, RowBudget(10_000)))
    assert isinstance(step, RowStep)
    assert sum(len(unit) for unit in step.units(100)) == distinct_prefixes(sequences)


@given(SEQUENCES, st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_small_rows_repeat_only_paths_too_short_to_keep(sequences: list[list[int]], row_tokens: int) -> None:
    computed = 0
    rows = 0
    for step in plan([build_tree(sequences)], 0, RowBudget(row_tokens)):
        if isinstance(step, PrefixStep):
            computed += len(step.tokens)
        elif isinstance(step, RowStep):
            units = step.units(100)
            computed += sum(len(unit) for unit in units)
            rows += len(units)
    assert computed <= distinct_prefixes(sequences) + rows * (SHORTEST_PREFIX - 1)


@given(SEQUENCES, st.sampled_from([0, 4, 30, 10**6]), st.sampled_from([None, 3]))
@settings(max_examples=100, deadline=None)
def test_masks_show_each_token_its_ancestors_within_the_window(sequences: list[list[int]], segment_cost: int, window: int | None) -> None:
    unit = make_unit(build_tree(sequences), 0, segment_cost)
    row = PackedRow([unit], None, torch.device("cpu"), torch.float32)
    expected = np.zeros((len(unit), len(unit)), dtype=bool)
    for path in unit.paths.values():
        for place, index in enumerate(path):
            first = 0 if window is None else max(0, place - window + 1)
            expected[index, path[first : place + 1]] = True
    seen = np.zeros_like(expected)
    for piece, mask in zip(row.pieces, row.masks(window), strict=True):
        n = piece.stop - piece.start
        columns = [] if piece.ancestors is None else piece.ancestors.tolist()
        columns += range(piece.start, piece.stop)
        visible = torch.ones(n, n).tril().bool() if mask is None else mask == 0
        seen[piece.start : piece.stop][:, columns] = visible.numpy()
    assert (seen == expected).all()


def test_a_chain_needs_no_mask() -> None:
    row = PackedRow([chain_unit(np.arange(5), 0)], None, torch.device("cpu"), torch.float32)
    assert row.masks(None) == [None]
    assert row.masks(9) == [None]
    (mask,) = row.masks(2)
    assert mask is not None
    assert int((mask == 0).sum()) == 9


@pytest.mark.parametrize("budget", [1, 3, 1000])
def test_equal_sequences_share_a_terminal(budget: int) -> None:
    units = [
        unit
        for step in plan([build_tree([[1, 2], [1, 2], [1, 3]])], 0, RowBudget(budget))
        if isinstance(step, RowStep)
        for unit in step.units(0)
    ]
    assert sorted(index for unit in units for index in unit.paths) == [0, 1, 2]
