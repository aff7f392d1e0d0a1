"""Runs protocols on a model: data, requests, engine, metrics, results; finished parts are kept and not run again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from prunebench.evaluation import perplexity
from prunebench.evaluation.aggregate import mean_of
from prunebench.evaluation.catalogue import (
    Protocol,
    ProtocolRequest,
    ProtocolTask,
    TaskDefinition,
    get_protocol,
    known_tasks,
)
from prunebench.evaluation.chat import Chat, chat_of
from prunebench.evaluation.engine.encoding import Encoder
from prunebench.evaluation.engine.engine import Answers, Engine, NonFiniteScore, RequestProblem
from prunebench.evaluation.engine.self_check import usable_rows
from prunebench.evaluation.fingerprint import model_fingerprint
from prunebench.evaluation.outcomes import ItemOutcome, Part, PartStore, key_of
from prunebench.evaluation.results import Estimate, ProtocolResult, TaskResult
from prunebench.evaluation.sampling import allocate, chosen_indices
from prunebench.evaluation.sources import NoData, TaskData, load_task_data
from prunebench.evaluation.task_result import task_result
from prunebench.models.errors import BadInput, PrunebenchError
from prunebench.models.special_tokens import Bos, bos_ids

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


CHUNK_ITEMS = 128
"""Small strata are computed together up to this many items: fuller rows, and more texts decoded in one step."""


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
    bos: Bos = "tokenizer",
    chat_template: bool | str | None = None,
    system: str | None = None,
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
        bos: whether a request, a block or a document begins with BOS: as the tokenizer does it in real use, always or
            never. Results say which it was where a perplexity depends on it.
        chat_template: True puts requests into the tokenizer's chat template as lm-eval's `apply_chat_template` does, with
            examples as turns; a name picks one of several templates. Running text (perplexities) stays as it is.
        system: text of the system message, before the task's own description.
        out_dir: where finished parts (`parts/`) and per-item outcomes (`samples/*.parquet`) go; a second call with the
            same model and arguments goes on where the first was cut, and its notes say so. None keeps nothing.
        token_budget: distinct tokens a packed row holds; None chooses by the memory at hand.
        progress: called as progress(label, items done, items in all).
    Returns:
        One result a protocol, in order.
    Raises:
        BadInput: unknown protocol or option, no data, malformed rows, a model or tokenizer that can't be scored, an item
            that can't; one sentence.
        ScoringFailed: logits that aren't numbers; names task and item.
    """
    requests = [ProtocolRequest(name=entry) if isinstance(entry, str) else entry for entry in protocols]
    if not requests:
        raise BadInput("No protocol was given; name one or more, such as commonsense_llm_pruner.")
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}; give a positive number of items a task, or none.")
    definitions = [get_protocol(request.name) for request in requests]
    chat = check_form(tokenizer, bos, chat_template, system)
    run = _Run(model, tokenizer, data_dir, seed, prompt, out_dir, token_budget, progress, bos, chat)
    plans = [run.prepare(protocol, request, request.limit or limit) for protocol, request in zip(definitions, requests, strict=True)]
    return [run.protocol(plan) for plan in plans]


def check_form(tokenizer: Any, bos: Bos, chat_template: bool | str | None, system: str | None) -> Chat | None:
    """Whether requests can be put to a model in this form with this tokenizer; the arguments are those of `evaluate`.

    Returns:
        The chat template, where one is asked for.
    Raises:
        BadInput: an option that the tokenizer can't follow.
    """
    if bos not in get_args(Bos):
        raise BadInput(f"bos is {bos!r}; give one of {', '.join(get_args(Bos))}.")
    bos_ids(tokenizer, bos)
    return chat_of(tokenizer, chat_template, system)


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


@dataclass
class _Piece:
    """One stratum that has to be computed."""

    stratum: str
    data: TaskData
    indices: list[int]
    key: str


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
        bos: Bos = "tokenizer",
        chat: Chat | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data_dir = Path(data_dir) if data_dir is not None else None
        self.seed = seed
        self.prompt = prompt or None
        self.out_dir = Path(out_dir) if out_dir is not None else None
        self.token_budget = token_budget
        self.progress = progress
        self.bos = bos
        self.chat = chat
        self.encoder = Encoder(tokenizer, self.prompt, bos, usable_rows(model))
        self.store = PartStore(self.out_dir / "parts" if self.out_dir else None)
        self._made: set[str] = set()  # keys of parts that this call computed
        self._data: dict[tuple[str, str, int, tuple[str, ...]], TaskData] = {}

    @cached_property
    def engine(self) -> Engine:
        """Made when the first part has to be computed."""
        return Engine(self.model, self.tokenizer, self.prompt, self.token_budget, self.bos)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What outcomes depend on beside the task and its items; reads every weight, so made only where parts are kept."""
        return {
            "model": model_fingerprint(self.model, self.tokenizer),
            "prompt": self.encoder.prompt_ids,
            "bos": self.bos,
            "chat": self.chat.identity if self.chat is not None else None,
            "packages": {name: version(name) for name in ("lm-eval", "torch", "transformers")},
        }

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
        results = [self.task(name, entry, data, plan.limit, plan.notes) for entry, data in zip(plan.entries, plan.data, strict=True)]
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
            definition=" ".join([plan.definition, *self.form(plan.entries)]),
            tasks=results,
            mean=mean,
            chance=chance,
            margin=margin,
            limit=plan.limit,
            seconds=seconds,
        )

    def form(self, entries: Sequence[ProtocolTask]) -> list[str]:
        """Sentences on how requests were put to the model, as far as a protocol leaves that open."""
        kinds = [known_tasks()[entry.task].perplexity for entry in entries]
        sentences = [f"Here: {kind.kind} {perplexity.read_behind(self.encoder, kind)}." for kind in kinds if kind is not None]
        if None in kinds:
            if self.chat is not None:
                sentences.append(f"Here: requests in {self.chat.description}.")
            if self.bos != "tokenizer":
                sentences.append(f"Here: {self.bos} BOS before a request.")
        return list(dict.fromkeys(sentences))

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

    def task(self, protocol: str, entry: ProtocolTask, data: dict[str, TaskData], limit: int | None, notes: list[str]) -> TaskResult:
        """Scores one task, stratum by stratum."""
        definition = known_tasks()[entry.task]
        label = f"{protocol}/{definition.name}"
        blocks: list[list[int]] = []
        if definition.perplexity is not None and definition.perplexity.kind == "blocks":
            blocks = perplexity.token_blocks(self.engine, data[""].rows, definition.perplexity)
        sizes = {stratum: len(blocks) if blocks else len(part.rows) - definition.fewshot_from_head for stratum, part in data.items()}
        counts = allocate(sizes, limit)
        total = sum(counts.values())
        parts: dict[str, Part] = {}
        earlier_strata: list[str] = []
        waiting: list[_Piece] = []
        for stratum, part_data in data.items():
            indices = chosen_indices(sizes[stratum], counts[stratum], self.seed, definition.name, stratum)
            key = self._key(definition, entry, stratum, part_data, indices)
            kept = self.store.load(key)
            if kept is not None:
                parts[stratum] = kept
                if key not in self._made:
                    earlier_strata.append(stratum)
            else:
                waiting.append(_Piece(stratum, part_data, indices, key))
        done = sum(len(part.outcomes) for part in parts.values())
        earlier = sum(len(parts[stratum].outcomes) for stratum in earlier_strata)
        while waiting:
            chunk = [waiting.pop(0)]
            while waiting and sum(len(piece.indices) for piece in [*chunk, waiting[0]]) <= CHUNK_ITEMS:
                chunk.append(waiting.pop(0))
            count = sum(len(piece.indices) for piece in chunk)
            report = self._reporter(label, done, total, count)
            for piece, part in zip(chunk, self.parts(definition, entry, chunk, blocks, report), strict=True):
                part.n_available = sizes[piece.stratum]
                self.store.save(piece.key, part)
                self._made.add(piece.key)
                parts[piece.stratum] = part
            done += count
        if self.progress is not None:
            self.progress(label, total, total)
        parts = {stratum: parts[stratum] for stratum in data}
        is_text = definition.perplexity is not None
        form_notes = ["a prompt stands before every request"] if self.prompt else []
        if self.chat is not None:
            form_notes += ["the chat template isn't used: running text has no turns"] if is_text else self.chat.notes
        return task_result(
            protocol,
            definition,
            entry,
            parts,
            notes=notes,
            form_notes=form_notes,
            form=perplexity.read_behind(self.encoder, definition.perplexity) if definition.perplexity is not None else "",
            seed=self.seed,
            earlier=earlier,
            out_dir=self.out_dir,
        )

    def _key(self, definition: TaskDefinition, entry: ProtocolTask, stratum: str, data: TaskData, indices: list[int]) -> str:
        """Under which the outcomes of a stratum are kept; "" where nothing is."""
        if self.store.folder is None:
            return ""
        task = definition.model_dump(mode="json", by_alias=True, exclude={"sources", "chance", "strata", "size"})
        return key_of({"task": task, "stratum": stratum, "shots": entry.shots, "data": data.sha256, "indices": indices, **self.identity})

    def _reporter(self, label: str, done: int, total: int, count: int) -> Callable[[int, int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda place, size: progress(label, done + (place * count) // max(1, size), total)

    def parts(
        self,
        definition: TaskDefinition,
        entry: ProtocolTask,
        chunk: list[_Piece],
        blocks: list[list[int]],
        report: Callable[[int, int], None] | None,
    ) -> list[Part]:
        """Computes some strata of a task together."""
        try:
            if definition.perplexity is not None:
                scored = [self._perplexity(definition, piece, blocks, report) for piece in chunk]
            else:
                scored = self._harness_parts(definition, entry, chunk, report)
        except _ItemError as error:
            place = f"Task '{definition.name}'{f' ({error.stratum})' if error.stratum else ''}"
            message = f"{place}, item {error.item}: {error.reason}."
            raise (BadInput if error.is_input else ScoringFailed)(message) from None
        return [
            Part(
                outcomes=outcomes,
                truncated=truncated,
                n_available=len(piece.data.rows),
                split=piece.data.split,
                source=piece.data.source,
                origin=piece.data.origin,
                sha256=piece.data.sha256,
                note=piece.data.note,
                notes=[*self.engine.notes, *self._left_out(definition, piece.stratum)],
                majority=_majority(definition, piece.data),
            )
            for piece, (outcomes, truncated) in zip(chunk, scored, strict=True)
        ]

    def _perplexity(
        self,
        definition: TaskDefinition,
        piece: _Piece,
        blocks: list[list[int]],
        report: Callable[[int, int], None] | None,
    ) -> tuple[list[ItemOutcome], int]:
        assert definition.perplexity is not None
        try:
            if blocks:
                return perplexity.score_blocks(self.engine, blocks, piece.indices, report), 0
            return perplexity.score_documents(self.engine, piece.data.rows, piece.indices, definition.perplexity, report)
        except (NonFiniteScore, RequestProblem) as error:
            is_input = isinstance(error, RequestProblem)
            raise _ItemError(piece.stratum, piece.indices[error.index], error.reason, is_input) from None

    def _left_out(self, definition: TaskDefinition, stratum: str) -> list[str]:
        """Says that a template without system messages shows no description, where the task has one."""
        if self.chat is None or self.chat.takes_system or definition.perplexity is not None:
            return []
        from prunebench.evaluation.harness import task_config

        if not task_config(definition, stratum).get("description"):
            return []
        return ["the chat template shows no system message, so the task's description is left out, as lm-eval does"]

    def _harness_parts(
        self,
        definition: TaskDefinition,
        entry: ProtocolTask,
        chunk: list[_Piece],
        report: Callable[[int, int], None] | None,
    ) -> list[tuple[list[ItemOutcome], int]]:
        from prunebench.evaluation.harness import build_requests, build_task, document_outcome, score_documents

        head = definition.fewshot_from_head
        tasks, instances = [], []
        owners: list[tuple[int, int]] = []  # (place in the chunk, item) of each request
        for place, piece in enumerate(chunk):
            rows = [piece.data.rows[head + index] for index in piece.indices]
            fewshot = piece.data.rows[:head] if head else piece.data.fewshot
            task = build_task(definition, piece.stratum, entry.shots, rows, fewshot)
            groups = build_requests(task, self._fits(definition), self.chat)
            tasks.append((task, groups))
            for document, group in enumerate(groups):
                instances += group
                owners += [(place, head + piece.indices[document])] * len(group)
        kind = instances[0].request_type
        try:
            answers = self._answers(kind, [instance.args for instance in instances], report)
        except (NonFiniteScore, RequestProblem) as error:
            place, item = owners[error.index]
            is_input = isinstance(error, RequestProblem)
            raise _ItemError(chunk[place].stratum, item, error.reason, is_input) from None
        for instance, response in zip(instances, answers.responses, strict=True):
            instance.resps = [response]
        cut = Counter(owners[index][0] for index in answers.truncated)
        return [
            (
                [
                    document_outcome(task, piece.stratum, head + index, scores, group)
                    for index, scores, group in zip(piece.indices, score_documents(task, groups), groups, strict=True)
                ],
                cut[place],
            )
            for place, (piece, (task, groups)) in enumerate(zip(chunk, tasks, strict=True))
        ]

    def _fits(self, definition: TaskDefinition) -> Callable[[str], bool] | None:
        longest = definition.max_prompt_tokens
        if longest is None:
            return None
        encoder = self.engine.encoder
        return lambda text: len(encoder.prompt_ids) + len(encoder.encode([text])[text]) <= longest

    def _answers(self, kind: str, arguments: list[Any], report: Callable[[int, int], None] | None) -> Answers:
        if kind == "loglikelihood":
            return self.engine.loglikelihood(arguments, report)
        if kind == "generate_until":
            return self.engine.generate_until(arguments, report)
        return self.engine.loglikelihood_rolling([argument[0] for argument in arguments], report)


def _majority(definition: TaskDefinition, data: TaskData) -> float | None:
    """Share of the most frequent gold answer, where the task's chance level asks for it."""
    if definition.chance != "majority":
        return None
    golds = Counter(row["target"] for row in data.rows[definition.fewshot_from_head :])
    return golds.most_common(1)[0][1] / golds.total()


class _ItemError(Exception):
    """An item that can't be scored."""

    def __init__(self, stratum: str, item: int, reason: str, is_input: bool) -> None:
        super().__init__(reason)
        self.stratum = stratum
        self.item = item
        self.reason = reason
        self.is_input = is_input
