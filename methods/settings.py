"""Settings of a method or recovery as its own code resolves them; that code may be anybody's, and fail in any way."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from prunebench.models.errors import BadInput, PrunebenchError, deed
from prunebench.models.files import one_line
from prunebench.models.suggest import did_you_mean, sentence, shown


@contextlib.contextmanager
def code_of(whose: str) -> Iterator[None]:
    """Turns whatever somebody else's code does but return into one sentence; Ctrl-C stays what it is.

    Args:
        whose: how the sentence begins: "supports() of method quiet".

    Raises:
        BadInput: in the place of any exception, sys.exit() among them.
    """
    try:
        yield
    except (KeyboardInterrupt, PrunebenchError):
        raise
    except BaseException as error:
        raise BadInput(f"{whose} {deed(error)}: {one_line(error)}.") from error


def resolved(config: Any, settings: dict[str, Any], whose: str) -> dict[str, Any]:
    """`settings` as JSON with the defaults filled in.

    They are kept so in records and read again by every stage, so they must mean the same then.

    Args:
        config: the pydantic model that reads them.
        whose: "method quiet", for sentences.

    Raises:
        BadInput: an unknown key, a value out of range; a config that is no pydantic model, drops keys, fails, holds a
            set, can't be written as JSON, or reads its own values as others.
    """
    where = f"settings of {whose}"
    if not (inspect.isclass(config) and issubclass(config, BaseModel)):
        raise BadInput(f"Config of {whose} is {shown(config)}; it must be a subclass of PrunerConfig or RecoveryConfig.")
    with code_of(where):
        try:
            found = config.model_validate(settings)
        except ValidationError as error:
            raise BadInput(sentence(error, config, where)) from None
        unordered = next((key for key, value in found.model_dump().items() if _holds_a_set(value)), None)
        if unordered is not None:
            raise BadInput(f"{where}: {unordered} holds a set, whose order differs from process to process; make it a list or a tuple.")
        written: dict[str, Any] = found.model_dump(mode="json")
        json.dumps(written, allow_nan=False)
        dropped = [key for key in settings if key not in written]
        if dropped:
            known = did_you_mean(dropped[0], written)
            raise BadInput(f"{where}: its Config drops the key {shown(dropped[0])}.{known} Known: {', '.join(written)}.")
        try:
            again = config.model_validate(written).model_dump(mode="json")
        except ValidationError as error:
            raise BadInput(f"{where} can't be read again as they are kept: {sentence(error, config, 'its Config')}") from None
    for key, value in written.items():
        if again.get(key) != value:
            raise BadInput(
                f"{where} change when they are read again: {key} {shown(value)} becomes {shown(again.get(key))}; "
                "its validators must leave accepted values as they are."
            )
    return written


def _holds_a_set(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_a_set, value.values()))
    return isinstance(value, set | frozenset) or (isinstance(value, list | tuple) and any(map(_holds_a_set, value)))
