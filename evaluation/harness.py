"""lm-eval's own tasks on our rows: its prompts, choices, filters and metrics, without its 19 s of start-up.

A task is built from the harness's YAML file (found inside the installed package) with only the data overridden.
Templates are compiled once and the few-shot block is rendered once a task; both give the harness's own text, which
the tests compare.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunebench.evaluation.catalogue import TaskDefinition
from prunebench.evaluation.chat import Chat
from prunebench.evaluation.outcomes import ItemOutcome
from prunebench.evaluation.sources import Row

log = logging.getLogger(__name__)

FEWSHOT_SEED = 1234
"""The harness's default seed for examples that are drawn."""


def task_config(definition: TaskDefinition, stratum: str) -> dict[str, Any]:
    """The configuration of one harness task: the stock file's, or our own."""
    if definition.stock is None:
        config = dict(definition.config or {})
    else:
        from lm_eval import tasks
        from lm_eval.tasks._yaml_loader import load_yaml

        folder = Path(tasks.__file__).parent
        config = load_yaml(folder / definition.stock.format(stratum=stratum), resolve_func=True)
    config.update(definition.overrides)
    return config


def build_task(definition: TaskDefinition, stratum: str, shots: int, rows: Sequence[Row], fewshot: Sequence[Row]) -> Any:
    """A harness task (`ConfigurableTask`) over these rows.

    Args:
        rows: what is scored, in this order. fewshot: rows the examples come from; empty where the task brings its own.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask

    data = datasets.DatasetDict({"test": datasets.Dataset.from_list(list(rows))})
    config = task_config(definition, stratum)
    for key in ("dataset_name", "training_split", "validation_split", "dataset_kwargs", "tag", "group", "task_alias"):
        config.pop(key, None)
    config |= {
        "task": f"{definition.name}{f'_{stratum}' if stratum else ''}",
        "dataset_path": "rows",
        "custom_dataset": lambda **_: data,
        "test_split": "test",
        "num_fewshot": 0 if definition.shots_in_rows else shots,
    }
    config.pop("fewshot_split", None)
    if fewshot:
        data["fewshot"] = datasets.Dataset.from_list(list(fewshot))
        config["fewshot_split"] = "fewshot"
    if definition.scoring:
        config["process_results"] = _STARTS_WITH[definition.scoring]
    with _quiet():
        task = ConfigurableTask(config=config)
    task.set_fewshot_seed(FEWSHOT_SEED)
    _compile_templates(task)
    return task


@contextmanager
def _quiet() -> Any:
    """The harness warns of defaults that the stock files themselves leave out; errors still pass. No data set bars."""
    import datasets

    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval.api.task", "lm_eval.config.task", "lm_eval.tasks")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not were_disabled:
            datasets.enable_progress_bars()


def _compile_templates(task: Any) -> None:
    """Replaces template strings by functions with the harness's own rules for their results."""
    from lm_eval.utils import env

    features = set(task.features)
    has_choices = task.config.doc_to_choice is not None

    def as_text(text: str) -> Any:
        return ast.literal_eval(text) if text.isdigit() and has_choices else text

    def as_target(text: str) -> Any:
        if text.isdigit() and has_choices:
            return ast.literal_eval(text)
        if len(text) >= 2 and text[0] == "[" and text[-1] == "]":
            try:
                return ast.literal_eval(text)
            except (SyntaxError, ValueError):
                return text
        return text

    rules: dict[str, Callable[[str], Any]] = {
        "doc_to_text": as_text,
        "doc_to_target": as_target,
        "doc_to_choice": ast.literal_eval,
    }
    for name, rule in rules.items():
        template = getattr(task.config, name)
        if not isinstance(template, str) or template in features:
            continue
        render = env.from_string(template).render
        setattr(task.config, name, lambda doc, render=render, rule=rule: rule(render(**doc)))


class ContextBuilder:
    """Prompts of one task; the description and examples are rendered once where they are the same for every item.

    In a chat template every prompt is rendered whole by the harness, since a template may do anything with its turns.
    """

    def __init__(self, task: Any, fits: Callable[[str], bool] | None = None, chat: Chat | None = None) -> None:
        self.task = task
        self.shots = int(task.config.num_fewshot or 0)
        self.fits = fits
        self.chat = chat
        self._headers: dict[int, str] = {}

    def __call__(self, doc: Row) -> Any:
        """The context of one document (a list of contexts where the choices stand in the context)."""
        if self.task.multiple_input or not self._is_constant():
            return self._whole(self.shots, doc)
        shots = self.shots
        context = self._context(shots, doc)
        while shots and self.fits is not None and not self.fits(context):
            shots -= 1
            context = self._context(shots, doc)
        return context

    def _whole(self, shots: int, doc: Row) -> Any:
        options: dict[str, Any] = {}
        if self.chat is not None:
            options = {
                "apply_chat_template": True,
                "chat_template": self.chat,
                "fewshot_as_multiturn": True,
                "system_instruction": self.chat.system,
            }
        return self.task.fewshot_context(doc, num_fewshot=shots, gen_prefix=self.task.doc_to_prefix(doc), **options)

    def _context(self, shots: int, doc: Row) -> str:
        if self.chat is not None:
            return str(self._whole(shots, doc))
        return self._header(shots, doc) + str(self.task.doc_to_text(doc))

    def _is_constant(self) -> bool:
        config = self.task.config
        if config.gen_prefix is not None or "{{" in (config.description or ""):
            return False
        if not self.shots:
            return True
        sampler = getattr(config.fewshot_config, "sampler", None)
        return sampler == "first_n" and self.task.fewshot_cfg.split != config.test_split

    def _header(self, shots: int, doc: Row) -> str:
        if shots not in self._headers:
            whole = self.task.fewshot_context(doc, num_fewshot=shots)
            own = self.task.doc_to_text(doc)
            if not whole.endswith(own):
                raise ValueError(f"task {self.task.task_name} does not end its prompt with the document's text")
            self._headers[shots] = whole[: len(whole) - len(own)]
        return self._headers[shots]


def build_requests(task: Any, fits: Callable[[str], bool] | None = None, chat: Chat | None = None) -> list[list[Any]]:
    """The harness's `Instance` objects, a list a document, in row order; also set as the task's own instances.

    Args:
        fits: whether a context is short enough; examples are dropped one by one while it is not.
        chat: the chat template that contexts are put into; None for plain text.
    """
    context = ContextBuilder(task, fits, chat)
    options = {"apply_chat_template": True, "chat_template": chat} if chat is not None else {}
    groups: list[list[Any]] = []
    with _quiet():
        docs = list(task.eval_docs)
    for index, doc in enumerate(docs):
        made = task.construct_requests(doc=doc, ctx=context(doc), metadata=(task.config.task, index, 1), **options)
        groups.append(made if isinstance(made, list) else [made])
    task._instances = [instance for group in groups for instance in group]
    return groups


def score_documents(task: Any, groups: list[list[Any]]) -> list[dict[str, Any]]:
    """The harness's metrics of each document, from the responses already put into its instances."""
    task.apply_filters()
    docs = [group[0].doc for group in groups]
    (key,) = task._instances[0].filtered_resps  # every task here has one filter pipeline
    scores = []
    for doc, group in zip(docs, groups, strict=True):
        responses = [instance.filtered_resps[key] for instance in sorted(group, key=lambda i: i.idx)]
        scores.append(dict(task.process_results(doc, responses)))
    return scores


def document_outcome(task: Any, stratum: str, item: int, scores: dict[str, Any], group: list[Any]) -> ItemOutcome:
    """One document's metrics and responses."""
    responses = [instance.resps[0] for instance in group]
    is_text = group[0].request_type == "generate_until"
    return ItemOutcome(
        item_id=f"{stratum}:{item}" if stratum else str(item),
        stratum=stratum,
        metrics={name: float(value) for name, value in scores.items()},
        choice_loglikelihoods=[] if is_text else [response[0] for response in responses],
        response=responses[0] if is_text else None,
        gold=str(task.doc_to_target(group[0].doc)),
        num_choices=0 if is_text else len(responses),
    )


def _starts_with_letter(doc: Row, results: list[str]) -> dict[str, float]:
    return {"exact_match": float(results[0].strip().startswith("ABCD"[doc["answer"]]))}


def _starts_with_target(doc: Row, results: list[str]) -> dict[str, float]:
    return {"exact_match": float(results[0].strip().startswith(doc["target"]))}


_STARTS_WITH = {"starts_with_letter": _starts_with_letter, "starts_with_target": _starts_with_target}
