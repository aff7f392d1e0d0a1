"""Runs protocols on a model: data, requests, engine, metrics, results; finished parts are kept and not run again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.aggregate import mean_of
from evaluation.catalogue import (
    Protocol,
    ProtocolRequest,
    ProtocolTask,
    TaskDefinition,
    get_protocol,
    known_tasks,
)
from evaluation.engine.engine import Answers, Engine, NonFiniteScore, RequestProblem
from evaluation.fingerprint import model_fingerprint
from evaluation.outcomes import ItemOutcome, Part, PartStore, key_of
from evaluation.results import Estimate, ProtocolResult, TaskResult
from evaluation.sampling import allocate, chosen_indices
from evaluation.sources import NoData, TaskData, load_task_data
from evaluation.task_result import task_result
from models.errors import BadInput, PrunebenchError

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


class ScoringFailed(PrunebenchError):
    """The model can't be scored on an item: its logits aren't numbers."""


def evaluate(
    model: Any,
    tokenizer: Any,
    protocols: Sequence[str | ProtocolRequest],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompt: str | None = None,
    out_dir: Path | None = None,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> list[ProtocolResult]:
    """Scores a causal LM by named protocols.

    Args:
        model, tokenizer: any transformers causal LM on its device, and its tokenizer.
        protocols: names, or requests with a limit or sources of their own. See `known_protocols()`.
        data_dir: folder of benchmark data (JSON Lines in the hub's schema); tried before hub and embedded data.
        limit: items a task (MMLU and BBH count as one task, spread over their subjects or tasks); drawn from `seed`
            alone, so every model sees the same items.
        prompt: text put before every request (Compresso's collaborative prompt).
        out_dir: where finished parts (`parts/`) and per-item outcomes (`samples/*.parquet`) go; a second call with the
            same arguments goes on where the first was cut. None keeps nothing.
        token_budget: distinct tokens a packed row holds; None chooses by the memory at hand.
        progress: called as progress(label, items done, items in all).
    Returns:
        One result a protocol, in order.
    Raises:
        BadInput: unknown protocol, no data, malformed rows, an item that can't be scored; one sentence.
        ScoringFailed: logits that aren't numbers; names task and item.
    """
    requests = [ProtocolRequest(name=entry) if isinstance(entry, str) else entry for entry in protocols]
    if not requests:
        raise BadInput("No protocol was given; name one or more, such as commonsense_llm_pruner.")
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}; give a positive number of items a task, or none.")
    definitions = [get_protocol(request.name) for request in requests]
    run = _Run(model, tokenizer, data_dir, seed, prompt, out_dir, token_budget, progress)
    plans = [
        run.prepare(protocol, request, request.limit or limit)
        for protocol, request in zip(definitions, requests, strict=True)
    ]
    return [run.protocol(plan) for plan in plans]


@dataclass
class _Plan:
    """A protocol with its data at hand."""

    protocol: Protocol
    name: str
    definition: str
    entries: list[ProtocolTask]
    data: list[dict[str, TaskData]]
    limit: int | None
    notes: list[str]


class _Run:
    """What the tasks of one call share."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        data_dir: Path | None,
        seed: int,
        prompt: str | None,
        out_dir: Path | None,
        token_budget: int | None,
        progress: Progress | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data_dir = Path(data_dir) if data_dir is not None else None
        self.seed = seed
        self.prompt = prompt or None
        self.out_dir = Path(out_dir) if out_dir is not None else None
        self.token_budget = token_budget
        self.progress = progress
        self.store = PartStore(self.out_dir / "parts" if self.out_dir else None)
        self._engine: Engine | None = None
        self._fingerprint = model_fingerprint(model, tokenizer)
        self._data: dict[tuple[str, str, int, tuple[str, ...]], TaskData] = {}

    @property
    def engine(self) -> Engine:
        """Made when the first part has to be computed."""
        if self._engine is None:
            self._engine = Engine(self.model, self.tokenizer, self.prompt, self.token_budget)
        return self._engine

    def prepare(self, protocol: Protocol, request: ProtocolRequest, limit: int | None) -> _Plan:
        """Loads all data, so that a missing source stops the call before anything is computed."""
        name, definition, entries = protocol.name, protocol.definition, list(protocol.tasks)
        notes: list[str] = []
        if protocol.without is not None:
            left_out = next(entry for entry in entries if entry.task == protocol.without.task)
            try:
                self.load(left_out, request)
            except NoData:
                entries.remove(left_out)
                name, definition = protocol.without.name, protocol.without.definition
                notes.append(f"{left_out.task} left out: its data is not there")
        data = [self.load(entry, request) for entry in entries]
        return _Plan(protocol, name, definition, entries, data, limit, notes)

    def protocol(self, plan: _Plan) -> ProtocolResult:
        """Scores every task of a protocol."""
        started = time.perf_counter()
        protocol, name = plan.protocol, plan.name
        results = [
            self.task(name, entry, data, plan.limit, plan.notes)
            for entry, data in zip(plan.entries, plan.data, strict=True)
        ]
        seconds = time.perf_counter() - started
        mean = chance = margin = None
        if protocol.average == "mean_of_tasks":
            mean = mean_of([Estimate(value=result.value, stderr=result.stderr) for result in results])
            if all(result.chance is not None for result in results):
                chance = sum(result.chance or 0.0 for result in results) / len(results)
                margin = mean.value - chance
        log.info("%s | %d items | %.1f s", name, sum(result.n for result in results), seconds)
        return ProtocolResult(
            protocol=name,
            version=protocol.version,
            definition=plan.definition,
            tasks=results,
            mean=mean,
            chance=chance,
            margin=margin,
            limit=plan.limit,
            seconds=seconds,
        )

    def load(self, entry: ProtocolTask, request: ProtocolRequest) -> dict[str, TaskData]:
        """Rows of every stratum of a task."""
        definition = known_tasks()[entry.task]
        found = {}
        for stratum in definition.all_strata:
            key = (definition.name, stratum, entry.shots, request.sources)
            if key not in self._data:
                self._data[key] = load_task_data(definition, stratum, request.sources, self.data_dir, entry.shots)
            found[stratum] = self._data[key]
        return found

    def task(
        self, protocol: str, entry: ProtocolTask, data: dict[str, TaskData], limit: int | None, notes: list[str]
    ) -> TaskResult:
        """Scores one task, stratum by stratum."""
        definition = known_tasks()[entry.task]
        label = f"{protocol}/{definition.name}"
        blocks: list[list[int]] = []
        if definition.perplexity is not None and definition.perplexity.kind == "blocks":
            from evaluation.perplexity import token_blocks

            blocks = token_blocks(self.engine, data[""].rows, definition.perplexity)
        sizes = {
            stratum: len(blocks) if blocks else len(part.rows) - definition.fewshot_from_head
            for stratum, part in data.items()
        }
        counts = allocate(sizes, limit)
        total = sum(counts.values())
        parts: dict[str, Part] = {}
        done = 0
        for stratum, part_data in data.items():
            indices = chosen_indices(sizes[stratum], counts[stratum], self.seed, definition.name, stratum)
            key = key_of(
                {
                    "task": definition.model_dump(mode="json", by_alias=True, exclude={"sources", "chance", "strata"}),
                    "stratum": stratum,
                    "shots": entry.shots,
                    "data": part_data.sha256,
                    "indices": indices,
                    "prompt": self.prompt,
                    "model": self._fingerprint,
                    "harness": version("lm-eval"),
                }
            )
            part = self.store.load(key)
            if part is None:
                report = self._reporter(label, done, total, len(indices))
                part = self.part(definition, entry, stratum, part_data, indices, blocks, report)
                part.n_available = sizes[stratum]
                self.store.save(key, part)
            parts[stratum] = part
            done += len(indices)
            if self.progress is not None:
                self.progress(label, done, total)
        return task_result(
            protocol, definition, entry, parts, notes=notes, seed=self.seed, has_prompt=bool(self.prompt), out_dir=self.out_dir
        )

    def _reporter(self, label: str, done: int, total: int, count: int) -> Callable[[int, int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda place, size: progress(label, done + (place * count) // max(1, size), total)

    def part(
        self,
        definition: TaskDefinition,
        entry: ProtocolTask,
        stratum: str,
        data: TaskData,
        indices: list[int],
        blocks: list[list[int]],
        report: Callable[[int, int], None] | None,
    ) -> Part:
        """Computes one stratum."""
        place = f"Task '{definition.name}'{f' ({stratum})' if stratum else ''}"
        truncated, majority = 0, None
        notes: list[str] = []
        try:
            if definition.perplexity is not None:
                from evaluation import perplexity

                if blocks:
                    outcomes = perplexity.score_blocks(self.engine, blocks, indices, report)
                else:
                    outcomes, truncated = perplexity.score_documents(
                        self.engine, data.rows, indices, definition.perplexity, report
                    )
            else:
                outcomes, truncated, notes = self._harness_part(definition, entry, stratum, data, indices, report)
                if definition.chance == "majority":
                    golds = Counter(row["target"] for row in data.rows[definition.fewshot_from_head :])
                    majority = golds.most_common(1)[0][1] / golds.total()
        except _ItemError as error:
            message = f"{place}, item {indices[error.document]}: {error.reason}."
            raise (BadInput if error.is_input else ScoringFailed)(message) from None
        except NonFiniteScore as error:
            raise ScoringFailed(f"{place}, item {indices[error.index]}: {error.reason}.") from None
        return Part(
            outcomes=outcomes,
            truncated=truncated,
            n_available=len(data.rows),
            split=data.split,
            source=data.source,
            origin=data.origin,
            sha256=data.sha256,
            note=data.note,
            notes=[*notes, *self.engine.notes],
            majority=majority,
        )

    def _harness_part(
        self,
        definition: TaskDefinition,
        entry: ProtocolTask,
        stratum: str,
        data: TaskData,
        indices: list[int],
        report: Callable[[int, int], None] | None,
    ) -> tuple[list[ItemOutcome], int, list[str]]:
        from evaluation.harness import build_requests, build_task, score_documents

        head = definition.fewshot_from_head
        rows = [data.rows[head + index] for index in indices]
        fewshot = data.rows[:head] if head else data.fewshot
        task = build_task(definition, stratum, entry.shots, rows, fewshot)
        groups = build_requests(task, self._fits(definition))
        instances = [instance for group in groups for instance in group]
        owners = [document for document, group in enumerate(groups) for _ in group]
        kind = instances[0].request_type
        try:
            answers = self._answers(kind, [instance.args for instance in instances], report)
        except NonFiniteScore as error:
            raise _ItemError(owners[error.index], error.reason, is_input=False) from None
        except RequestProblem as error:
            raise _ItemError(owners[error.index], error.reason, is_input=True) from None
        for instance, response in zip(instances, answers.responses, strict=True):
            instance.resps = [response]
        outcomes = []
        for place, (scores, group) in enumerate(zip(score_documents(task, groups), groups, strict=True)):
            responses = [instance.resps[0] for instance in group]
            is_text = kind == "generate_until"
            outcomes.append(
                ItemOutcome(
                    item_id=f"{stratum}:{head + indices[place]}" if stratum else str(head + indices[place]),
                    stratum=stratum,
                    metrics={name: float(value) for name, value in scores.items()},
                    choice_loglikelihoods=[] if is_text else [response[0] for response in responses],
                    response=responses[0] if is_text else None,
                    gold=str(task.doc_to_target(group[0].doc)),
                    num_choices=0 if is_text else len(responses),
                )
            )
        return outcomes, len(answers.truncated), []

    def _fits(self, definition: TaskDefinition) -> Callable[[str], bool] | None:
        longest = definition.max_prompt_tokens
        if longest is None:
            return None
        engine = self.engine
        return lambda text: len(engine.prompt_ids) + len(engine.tokenizer(text)["input_ids"]) <= longest

    def _answers(self, kind: str, arguments: list[Any], report: Callable[[int, int], None] | None) -> Answers:
        if kind == "loglikelihood":
            return self.engine.loglikelihood(arguments, report)
        if kind == "generate_until":
            return self.engine.generate_until(arguments, report)
        return self.engine.loglikelihood_rolling([argument[0] for argument in arguments], report)


class _ItemError(Exception):
    """A request that failed, by its document's place among those scored."""

    def __init__(self, document: int, reason: str, is_input: bool) -> None:
        super().__init__(reason)
        self.document = document
        self.reason = reason
        self.is_input = is_input
