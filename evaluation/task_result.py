"""The result of one task from its scored parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from prunebench.evaluation.aggregate import PERPLEXITIES, all_estimates, chance_level
from prunebench.evaluation.catalogue import ProtocolTask, TaskDefinition
from prunebench.evaluation.outcomes import ItemOutcome, Part, write_samples
from prunebench.evaluation.results import SourceName, TaskResult
from prunebench.models.errors import BadInput

KEPT = "kept from an earlier run"
"""How the note ends that says which items weren't computed now."""


def task_result(
    protocol: str,
    definition: TaskDefinition,
    entry: ProtocolTask,
    parts: dict[str, Part],
    *,
    notes: list[str],
    form_notes: list[str],
    form: str,
    seed: int,
    earlier: int,
    out_dir: Path | None,
) -> TaskResult:
    """Estimates, baseline and notes of one task; writes its parquet file below `out_dir`.

    Args:
        notes, form_notes: what the protocol says of its tasks, and of how requests were put to the model.
        form: what a perplexity's texts were read behind; "" for other metrics.
        earlier: items that an earlier run had computed.
    """
    estimates = all_estimates(parts, definition.pooled)
    if entry.metric not in estimates:
        known = ", ".join(name for name in estimates if "[" not in name)
        raise BadInput(f"Task '{definition.name}' has no metric '{entry.metric}'; it has {known}.")
    value = estimates[entry.metric]
    outcomes = [outcome for part in parts.values() for outcome in part.outcomes]
    samples_file = None
    if out_dir is not None:
        samples_file = f"samples/{protocol}__{definition.name}.parquet"
        write_samples(out_dir / samples_file, outcomes)
    first = next(iter(parts.values()))
    available = sum(part.n_available for part in parts.values())
    found = list(dict.fromkeys(notes + [note for part in parts.values() for note in (part.note, *part.notes) if note]))
    if definition.note:
        found.append(" ".join(definition.note.split()))
    if len(outcomes) < available:
        found.append(
            f"{len(outcomes)} of {available} items, drawn with seed {seed}"
            + (f", spread over {len(parts)} strata" if len(parts) > 1 else "")
        )
    truncated = sum(part.truncated for part in parts.values())
    if truncated:
        found.append(f"{truncated} requests cut from the left to fit the model's context")
    tied, told = _all_tied(outcomes)
    if tied:
        found.append(f"{tied} of {told} items gave all choices one score")
    found += form_notes
    sources = {part.source for part in parts.values()}
    if len(sources) > 1:
        found.append(f"strata come from different sources: {', '.join(sorted(sources))}")
    if earlier:
        found.append(KEPT if earlier == len(outcomes) else f"{earlier} of {len(outcomes)} items {KEPT}")
    splits = "/".join(dict.fromkeys(part.split for part in parts.values()))
    hashes = [part.sha256 for part in parts.values()]
    is_perplexity = entry.metric in PERPLEXITIES
    return TaskResult(
        task=definition.name,
        metric=entry.metric,
        value=value.value,
        stderr=value.stderr,
        n=len(outcomes),
        n_available=available,
        shots=entry.shots,
        split=splits,
        source=cast("SourceName", first.source),
        source_hash=hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        higher_is_better=not is_perplexity,
        definition=f"{entry.metric}{f' ({form})' if form else ''}, {entry.shots}-shot, {definition.name} {splits}, n={len(outcomes)}",
        chance=None if is_perplexity else chance_level(definition.chance, list(parts.values()), definition.pooled),
        all_metrics={name: (part.value, part.stderr) for name, part in estimates.items()},
        truncated=truncated,
        notes=found,
        samples_file=samples_file,
    )


def _all_tied(outcomes: list[ItemOutcome]) -> tuple[int, int]:
    """Items whose choices all have one log-likelihood, so that the first is taken whatever the model says; and items of choices."""
    chosen = [outcome.choice_loglikelihoods for outcome in outcomes if outcome.num_choices > 1]
    return sum(len(set(scores)) == 1 for scores in chosen), len(chosen)
