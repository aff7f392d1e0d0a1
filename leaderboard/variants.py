"""What sets several settings of one method apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.leaderboard.formatting import clean

UNSET = "unset"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys; lists as JSON."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(list(value), default=str) if isinstance(value, (list, tuple)) else value
    return flat


def set_apart(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each of several settings of one thing, what a reader needs to tell it from the others; no two are the same.

    Keys that are equal everywhere aren't told. Where several keys differ, a value that more than half of the settings share
    isn't told either: of an ablation, every row then names what was changed, and the unchanged one nothing. Fractions are told
    with as few digits as tell them from the others (0.6667 for 2/3), keys by as much of their end as no other key here shares
    (`source` for `text.source`, unless `finetune_text.source` differs too), in the order of the whole keys.
    """
    flat = _with_few_digits([flatten(one) for one in settings])
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if any(one.get(key) != flat[0].get(key) for one in flat)]
    short = _with_short_names(sorted(keys))
    told: list[dict[str, Any]] = [{name: one.get(key, UNSET) for key, name in short.items()} for one in flat]
    if len(keys) < 2:
        return told
    for key in short.values():
        [(value, count)] = Counter(str(one[key]) for one in told).most_common(1)
        if 2 * count > len(told):
            for one in told:
                if str(one[key]) == value:
                    del one[key]
    return told


def in_words(told: Mapping[str, Any]) -> str:
    """What `set_apart` tells of one setting, as it stands beside the method's name."""
    return ", ".join(f"{key}={value}" for key, value in told.items())


MOST_WORDS = 40
MOST_OF_ONE = 30


def short_words(told: Mapping[str, Any]) -> str:
    """As `in_words`, but whole settings only as far as they fit beside a name, and how many more there are."""
    words = [clean(f"{key}={value}") for key, value in told.items()]
    words = [word if len(word) <= MOST_OF_ONE else word[: MOST_OF_ONE - 1] + "…" for word in words]
    shown = words[:1]
    for word in words[1:]:
        if len(", ".join([*shown, word])) > MOST_WORDS:
            break
        shown.append(word)
    left = len(words) - len(shown)
    return ", ".join(shown) + (f", +{left}" if left else "")


def _with_short_names(keys: Sequence[str]) -> dict[str, str]:
    """Of each dotted key the shortest end that is the end of no other."""

    def ends(key: str) -> list[str]:
        parts = key.split(".")
        return [".".join(parts[start:]) for start in reversed(range(len(parts)))]

    shared = Counter(end for key in keys for end in ends(key))
    return {key: next((end for end in ends(key) if shared[end] == 1), key) for key in keys}


def _with_few_digits(flat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    short: list[dict[str, Any]] = [dict(one) for one in flat]
    for key in dict.fromkeys(key for one in flat for key in one):
        fractions = {one[key] for one in flat if isinstance(one.get(key), float)}
        rounded = {value: float(f"{value:.4g}") for value in fractions}
        if len(set(rounded.values())) == len(fractions):
            for one in short:
                if isinstance(one.get(key), float):
                    one[key] = rounded[one[key]]
    return short
