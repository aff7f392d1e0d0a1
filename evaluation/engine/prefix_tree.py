"""Which tokens have to go through the model once: a prefix tree over token sequences, cut into packed rows.

Requests share contexts (the choices of one item) and headers (the few-shot block of a task). Sorted sequences make
a radix tree; a subtree that fits into one row is a `Unit`, a path shared by more than one row becomes a `Prefix`
whose keys and values are kept while its rows run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

SHORTEST_PREFIX = 2
"""Tokens; a shared path shorter than this is computed again in every row instead of being kept as a prefix."""


@dataclass
class Node:
    """One edge of the radix tree: tokens `start..end` of `sequence`, below a parent that ends at `start`."""

    sequence: np.ndarray
    start: int
    end: int
    terminals: list[int] = field(default_factory=list)  # indices of sequences that end here
    children: list[Node] = field(default_factory=list)
    size: int = 0  # distinct tokens in this subtree, own edge included

    @property
    def tokens(self) -> np.ndarray:
        return self.sequence[self.start : self.end]


def build_tree(sequences: Sequence[Sequence[int]]) -> Node:
    """The radix tree of all sequences; duplicates share a terminal node.

    Args:
        sequences: token ids; none may be empty.
    Returns:
        The root; its edge is the prefix common to all (often empty).
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(arrays)), key=lambda i: tuple(sequences[i]))
    common = np.zeros(len(order), dtype=np.int64)  # shared length with the neighbour before
    for place in range(1, len(order)):
        common[place] = shared_length(arrays[order[place - 1]], arrays[order[place]])
    return _build(arrays, order, common, 0, len(order), 0)


def shared_length(left: np.ndarray, right: np.ndarray) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return int(differs[0]) if len(differs) else length


def _build(arrays: list[np.ndarray], order: list[int], common: np.ndarray, low: int, high: int, depth: int) -> Node:
    first = arrays[order[low]]
    end = len(first) if high - low == 1 else min(len(first), int(common[low + 1 : high].min()))
    node = Node(first, depth, end)
    place = low
    while place < high and len(arrays[order[place]]) == end:
        node.terminals.append(order[place])
        place += 1
    while place < high:
        stop = place + 1
        while stop < high and common[stop] > end:
            stop += 1
        node.children.append(_build(arrays, order, common, place, stop, end))
        place = stop
    node.size = (end - depth) + sum(child.size for child in node.children)
    return node


@dataclass
class Segment:
    """Tokens `start..stop` of a unit that attend together: to `ancestors` before them and among themselves."""

    start: int
    stop: int
    ancestors: np.ndarray  # indices in the unit


@dataclass
class Unit:
    """A subtree that runs in one row, its tokens in depth-first order.

    tokens, depths: (n,) ids and positions (the sequence starts at position 0).
    ends: (n,) index after the last descendant: token j sees token i exactly when i <= j < ends[i].
    paths: for every sequence that ends in this unit, the unit indices of its tokens from `first_depth` on.
    segments: the unit in pieces whose attention is worth computing densely.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    first_depth: int
    paths: dict[int, np.ndarray]
    segments: list[Segment]

    def __len__(self) -> int:
        return len(self.tokens)


def chain_unit(tokens: np.ndarray, first_depth: int) -> Unit:
    """A path without branches."""
    n = len(tokens)
    whole = Segment(0, n, np.zeros(0, dtype=np.int64))
    return Unit(tokens, np.arange(first_depth, first_depth + n), np.full(n, n), first_depth, {}, [whole])


def make_unit(node: Node, first_depth: int, segment_cost: int) -> Unit:
    """Lays out the subtree under `node`, with the path from `first_depth` down to the node in front.

    Args:
        segment_cost: what one more attention call costs, in query-key pairs.
    """
    tokens: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    ends: list[int] = []
    paths: dict[int, np.ndarray] = {}
    segments: list[Segment] = []
    splits: dict[int, bool] = {}

    def decide(current: Node, start: int, above: int) -> int:
        """Pairs to compute for this subtree below `above` ancestors; notes whether it is cut at its root."""
        edge = current.end - start
        size = edge + current.size - (current.end - current.start)
        dense = size * (above + size) + segment_cost
        if not current.children:
            return dense
        cut = edge * (above + edge) + (segment_cost if edge else 0)
        cut += sum(decide(child, child.start, above + edge) for child in current.children)
        splits[id(current)] = cut < dense
        return min(cut, dense)

    def visit(current: Node, start: int, path: np.ndarray, is_inside: bool) -> None:
        here = len(ends)
        length = current.end - start
        tokens.append(current.sequence[start : current.end])
        depths.append(np.arange(start, current.end))
        ends.extend([0] * length)
        above = path
        path = np.concatenate([path, np.arange(here, here + length)])
        for terminal in current.terminals:
            paths[terminal] = path
        is_cut = not is_inside and splits.get(id(current), False)
        if is_cut and length:
            segments.append(Segment(here, here + length, above))
        for child in current.children:
            visit(child, child.start, path, is_inside or not is_cut)
        ends[here : here + length] = [len(ends)] * length
        if not is_inside and not is_cut:
            segments.append(Segment(here, len(ends), above))

    decide(node, first_depth, 0)
    visit(node, first_depth, np.zeros(0, dtype=np.int64), False)
    segments.sort(key=lambda segment: segment.start)
    return Unit(np.concatenate(tokens), np.concatenate(depths), np.asarray(ends), first_depth, paths, segments)


@dataclass
class PrefixStep:
    """Run `tokens` (a chain at positions `first_depth` on) and keep their keys and values until `PrefixEnd`."""

    tokens: np.ndarray
    first_depth: int
    sequences: list[int]  # every sequence below it: some may be scored inside these tokens


@dataclass
class PrefixEnd:
    """The prefix opened last isn't needed any more."""


@dataclass
class RowStep:
    """Run these subtrees side by side, each from `first_depth` on, under the prefixes that are open."""

    nodes: list[Node]
    first_depth: int

    def units(self, segment_cost: int) -> list[Unit]:
        return [make_unit(node, self.first_depth, segment_cost) for node in self.nodes]


Step = PrefixStep | PrefixEnd | RowStep


def all_terminals(node: Node) -> list[int]:
    """Every sequence that ends in the subtree."""
    found = list(node.terminals)
    for child in node.children:
        found.extend(all_terminals(child))
    return found


@dataclass
class RowBudget:
    """Distinct tokens a row may hold; shared by planner and executor, which shrinks it when memory runs out."""

    tokens: int


def plan(nodes: Sequence[Node], first_depth: int, budget: RowBudget) -> Iterator[Step]:
    """The steps that run every distinct token once, rows holding at most about `budget.tokens` tokens.

    A subtree larger than a row is split at its root: the shared path becomes a prefix, its children are packed. A
    single chain longer than a row stays one row of its own.

    Args:
        nodes: subtrees below the prefixes that are open.
        first_depth: number of tokens in those prefixes.
    """
    small: list[Node] = []
    for node in nodes:
        small += yield from _split(node, first_depth, budget)
    yield from _pack(small, first_depth, budget)


def _split(node: Node, first_depth: int, budget: RowBudget) -> Generator[Step, None, list[Node]]:
    """Yields the steps of a subtree that must be split; returns the subtrees that fit into rows at `first_depth`."""
    if node.start - first_depth + node.size <= budget.tokens or not node.children:
        return [node]
    if node.end - first_depth >= SHORTEST_PREFIX:
        yield PrefixStep(node.sequence[first_depth : node.end], first_depth, all_terminals(node))
        yield from plan(node.children, node.end, budget)
        yield PrefixEnd()
        return []
    small: list[Node] = []
    if node.terminals:  # ends inside a path too short to be kept: a row of its own, without the children
        small.append(Node(node.sequence, node.start, node.end, node.terminals, [], node.end - node.start))
    for child in node.children:
        small += yield from _split(child, first_depth, budget)
    return small


def _pack(nodes: list[Node], first_depth: int, budget: RowBudget) -> Iterator[Step]:
    """Groups subtrees into rows, longest first, so that a row holds subtrees of similar size."""
    row: list[Node] = []
    filled = 0
    for node in sorted(nodes, key=lambda n: n.start - n.size):
        cost = node.size + node.start - first_depth
        if row and filled + cost > budget.tokens:
            yield RowStep(row, first_depth)
            row, filled = [], 0
        row.append(node)
        filled += cost
    if row:
        yield RowStep(row, first_depth)
