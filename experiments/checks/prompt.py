"""The text that the grid puts before every evaluation request."""

from __future__ import annotations

from pathlib import Path

from prunebench.models.errors import BadInput
from prunebench.models.suggest import shown, unknown

MAX_PROMPT_BYTES = 100_000


def prompt_of(setting: str | None) -> str | None:
    """What `evaluation.prompt` stands for.

    Args:
        setting: a text; `file:PATH`, a UTF-8 file whose text it is; `compresso:training` or `compresso:past_tense`, a
            collaborative prompt of that method; None for no prompt.

    Raises:
        BadInput: no such file or prompt, or a file that is not a short text.
    """
    if setting is None:
        return None
    kind, colon, name = setting.partition(":")
    if colon and kind == "compresso":
        from prunebench.methods.compresso.prompts import Prompt, prompt_names, prompt_text

        if name not in prompt_names():
            raise unknown("collaborative prompt in evaluation.prompt", name, prompt_names())
        chosen: Prompt = name  # type: ignore[assignment]  # checked on the line above
        return prompt_text(chosen)
    return _read(Path(name)) if colon and kind == "file" else setting


def _read(path: Path) -> str:
    where = f"evaluation.prompt names the file {shown(str(path))}"
    try:
        data = path.read_bytes()
        if len(data) > MAX_PROMPT_BYTES:
            raise BadInput(f"{where}, which has {len(data)} bytes; a prompt has at most {MAX_PROMPT_BYTES}.")
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{where}, which is not UTF-8 text; save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{where}, which can't be read: {reason}.") from None
    if not text.strip():
        raise BadInput(f"{where}, which is empty; leave evaluation.prompt out for no prompt.")
    return text
