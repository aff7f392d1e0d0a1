"""The exceptions of prunebench: one base, so that a caller can tell our refusals from a bug."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that memory ran out: a GPU's, Python's own, or an allocator's plain RuntimeError."""
    is_named_so = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named_so or any(sign in text_of(error).lower() for sign in OUT_OF_MEMORY)


def text_of(error: BaseException) -> str:
    """The message of any exception, in characters that every terminal and file can take; its class where that fails, too."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # the exception is somebody else's, and so is its __str__
        return f"its message can't be read ({type(error).__name__})"
    return "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode("ascii") for c in text)


def deed(error: BaseException) -> str:
    """What code of others did: `called sys.exit(0)`, or `raised ValueError`."""
    if not isinstance(error, SystemExit):
        return f"raised {type(error).__name__}"
    code = error.code
    shown = repr(code) if code is None or type(code) in (int, str) else type(code).__name__
    return f"called sys.exit({shown if len(shown) <= 80 else shown[:77] + '...'})"


class PrunebenchError(Exception):
    """Base of every error that prunebench raises on purpose; the message is one sentence for the user."""


class BadInput(PrunebenchError):
    """Something the user gave can't be used; the message names the field, the value and what would be accepted."""


class UnsupportedModel(BadInput):
    """The model has a part that the anatomy can't read; the message names the module that was looked for."""


class InvalidMasks(BadInput):
    """Masks that can't be sliced into a real model; the message names the layer and the reason."""


class BudgetError(BadInput):
    """A parameter budget that the model can't reach or that a method missed."""


class AssetError(BadInput):
    """An embedded asset could not be fetched or failed its hash; the cache stays usable."""


class CheckpointError(BadInput):
    """A model folder or file that can't be loaded (no weights, truncated, not a model)."""
