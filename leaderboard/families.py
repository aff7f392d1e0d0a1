"""Which rows of a race stand for their method: one main setting of each contender; its other settings are ablations.

The main one is never chosen by its score: that would make the best of many draws compete with single draws.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prunebench.leaderboard.collect import Entry
from prunebench.leaderboard.variants import flatten

FamilyKind = Literal["methods", "ablations", "dense", "chosen"]
WORDS = {
    "methods": "all pairs of methods of one race and suite, each method by its main setting",
    "ablations": "the ablations of one method in one race and suite, each against the method's main setting",
    "dense": "the methods of one race and suite, each against the dense model",
    "chosen": "the pairs that were chosen to be compared",
}
"""What is corrected together, for each kind of family."""


@dataclass(frozen=True)
class Family:
    """The tests that were corrected together."""

    kind: FamilyKind
    size: int

    @property
    def words(self) -> str:
        return f"{WORDS[self.kind]} ({self.size} test{'s' if self.size != 1 else ''})"


def main_settings(race: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of one race by contender, in the order of their first entries; in each list the main setting comes first.

    Main is the setting with most finished seeds; among equals the one that is nearest to all others (an ablation changes one thing
    of the main setting, so two ablations differ in two things), then the first by the text of its settings.
    """
    found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in race:
        found[entry.contender].append(entry)
    return [_main_first(group) for group in found.values()]


def _main_first(group: list[Entry]) -> list[Entry]:
    if len(group) < 2:
        return group
    distance = _distances([entry.settings for entry in group])
    order = sorted(range(len(group)), key=lambda i: (-len({r.run.seed for r in group[i].done}), distance[i], group[i].settings))
    return [group[i] for i in order]


def _distances(settings: list[str]) -> list[int]:
    """Of each setting the number of keys in which it differs from every other one, added up."""
    flat = [{key: json.dumps(value, default=str) for key, value in flatten(json.loads(text or "{}")).items()} for text in settings]
    total = [0] * len(flat)
    for key in dict.fromkeys(key for one in flat for key in one):
        values = [one.get(key) for one in flat]
        for i, value in enumerate(values):
            total[i] += sum(value != other for other in values)
    return total
