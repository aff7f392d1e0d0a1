"""Checks rows of task data before anything is computed: a wrong file stops with the item that is wrong."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.models.errors import BadInput


class _Wrong(Exception):
    """What is wrong with one field, without its place."""


def check_rows(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, str], where: str) -> None:
    """Every row has every field, of its kind.

    Args:
        fields: field name -> kind, see `_check`.
        where: names task and file in the message.
    Raises:
        BadInput: an empty file, a missing field, an empty choice, a label out of range.
    """
    if not rows:
        raise BadInput(f"{where} holds no rows; a task needs at least one.")
    for index, row in enumerate(rows):
        for field, kind in fields.items():
            if field not in row:
                raise BadInput(f"{where}, row {index}: field '{field}' is missing; it has {', '.join(sorted(row))}.")
            try:
                _check(row[field], kind.split(), row)
            except _Wrong as wrong:
                raise BadInput(f"{where}, row {index}: field '{field}' {wrong}.") from None


def _check(value: Any, kind: list[str], row: Mapping[str, Any]) -> None:
    """Kinds: text, any_text, blank_text, texts [N], any_texts, index N|FIELD, integer A-B, digit A-B, one_of A B ..., options,
    key FIELD (the label of one of the options in FIELD), problems (RACE's list literal)."""
    name, arguments = kind[0], kind[1:]
    if name in ("text", "any_text", "blank_text"):
        _text(value, may_be_empty=name == "any_text")
        if name == "blank_text" and "_" not in value:
            raise _Wrong(f"has no blank '_' to fill: {value[:60]!r}")
    elif name in ("texts", "any_texts"):
        _texts(value, int(arguments[0]) if arguments else None, may_be_empty=name == "any_texts")
    elif name == "index":
        count = int(arguments[0]) if arguments[0].isdigit() else len(row[arguments[0]])
        _number(value, 0, count - 1)
    elif name in ("integer", "digit"):
        low, high = (int(part) for part in arguments[0].split("-"))
        if name == "digit":
            if not isinstance(value, str) or not value.isdigit():
                raise _Wrong(f"is {value!r}; expected a string from '{low}' to '{high}'")
            value = int(value)
        _number(value, low, high)
    elif name == "one_of":
        if value not in arguments:
            raise _Wrong(f"is {value!r}; expected one of {', '.join(arguments)}")
    elif name == "options":
        if not isinstance(value, Mapping) or "text" not in value or "label" not in value:
            raise _Wrong("must hold 'text' and 'label' lists")
        _texts(value["text"], None)
        _texts(value["label"], len(value["text"]))
    elif name == "key":
        labels = row[arguments[0]]["label"]
        if not isinstance(value, str) or value.strip() not in labels:
            raise _Wrong(f"is {value!r}; expected one of the labels {', '.join(map(str, labels))}")
    elif name == "problems":
        _problems(value)
    else:
        raise ValueError(f"unknown row kind {name}")


def _text(value: Any, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise _Wrong(f"is {type(value).__name__}; expected text")
    if not value.strip() and not may_be_empty:
        raise _Wrong("is empty; a prompt or choice needs text")


def _texts(value: Any, count: int | None, may_be_empty: bool = False) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _Wrong(f"is {type(value).__name__}; expected a list of texts")
    if count is not None and len(value) != count:
        raise _Wrong(f"holds {len(value)} texts; expected {count}")
    if len(value) < 2:
        raise _Wrong(f"holds {len(value)} texts; a choice needs two or more")
    for place, item in enumerate(value):
        try:
            _text(item, may_be_empty)
        except _Wrong as wrong:
            raise _Wrong(f"entry {place} {wrong}") from None


def _number(value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _Wrong(f"is {value!r}; expected a whole number from {low} to {high}")


def _problems(value: Any) -> None:
    try:
        problems = ast.literal_eval(value) if isinstance(value, str) else None
    except (SyntaxError, ValueError):
        problems = None
    if not isinstance(problems, list) or not problems:
        raise _Wrong("must be the literal of a list of problems")
    for problem in problems:
        if not isinstance(problem, dict) or {"question", "answer", "options"} - set(problem):
            raise _Wrong("holds a problem without question, answer or options")
        if problem["answer"] not in ("A", "B", "C", "D"):
            raise _Wrong(f"holds the answer {problem['answer']!r}; expected A, B, C or D")
        _texts(problem["options"], 4)
