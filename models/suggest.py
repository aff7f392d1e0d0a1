"""Turns 'unknown name' and pydantic's complaints into one sentence with a suggestion."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from prunebench.models.errors import BadInput

MAX_VALUE_CHARS = 80


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name).lower(), {k.lower(): k for k in known}, n=1, cutoff=0.6)
    by_lower = {k.lower(): k for k in known}
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that isn't one of `known`."""
    names = sorted(known)
    return BadInput(f"Unknown {kind} {shown(name)}.{did_you_mean(name, names)} Known: {', '.join(names) or 'none'}.")


def shown(value: Any) -> str:
    """`value` as the user would recognise it, in one short line."""
    text = repr(value).encode("unicode_escape").decode("ascii") if isinstance(value, str) and not value.isprintable() else repr(value)
    text = text.replace("\n", " ")
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """The first thing that is wrong, as one sentence: where, field, value, what would be accepted.

    Args:
        where: the file or option that the value came from.
    """
    details = error.errors(include_url=False)
    # An unknown key explains the missing one beside it, so it goes first.
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = [str(part) for part in first["loc"] if not _is_branch_name(str(part))]
    field = ".".join(path) or "the whole file"
    more = f" ({len(details) - 1} more problem{'s' * (len(details) > 2)} after it.)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = fields_at(model, path[:-1])
        options = f" Known keys there: {', '.join(sorted(known))}." if known else ""
        return f"{where}: unknown key '{_one_line(field)}'.{did_you_mean(path[-1], known)}{options}{more}"
    if first["type"] == "missing":
        return f"{where}: '{_one_line(field)}' is missing.{more}"
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "value_error" and not path:  # fields that don't fit together; the message names them
        return f"{where}: {_one_line(message)}.{more}"
    return f"{where}: {_one_line(field)} = {shown(first.get('input'))} is not accepted: {_one_line(message)}.{more}"


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _is_branch_name(part: str) -> bool:
    """Names that pydantic puts into the path for the branch of a union, which the user never typed."""
    return part in {"str", "int", "float", "bool", "none"} or "[" in part or (part[:1].isupper() and part.isidentifier())


def fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names that are accepted at `path` below `model`; empty when it can't be told."""
    current: set[type[BaseModel]] = {model}
    for part in path:
        following: set[type[BaseModel]] = set()
        for one in current:
            if part.isdigit():
                following.add(one)
            elif part in one.model_fields:
                following |= _models_in(one.model_fields[part].annotation)
        current = following
    return sorted({name for one in current for name in one.model_fields})


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {found for argument in typing.get_args(annotation) for found in _models_in(argument)}
