"""The kept records: one archive a finished cell, records/<cell id>.zip, and records/manifest.json, which says what each is.

An archive holds a cell's record, its seal, its outcomes and its masks. A question's table is made of the archives that the manifest
gives it. An id is a hash of a cell's definition, and the definition grows with the program; so a cell of today's grid is found among
the archives by its settings, and runs only where none has them. A cell is known by its settings, not by the code that ran it: when a
method's results change, take its archives out of folder and manifest.
"""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from prunebench.experiments.cell import CELL_FORMAT, DENSE, CellConfig
from prunebench.experiments.cell_folder import CellFolder, write_text
from prunebench.experiments.config import Part
from prunebench.experiments.run_cell import finished_record
from prunebench.leaderboard.variants import in_words, set_apart
from prunebench.methods.registry import get_pruner, get_recovery
from prunebench.models.errors import BadInput, PrunebenchError
from prunebench.models.files import sha256_of
from prunebench.models.loading import EMBEDDED_PREFIX
from prunebench.models.suggest import sentence

MANIFEST = "manifest.json"
WHEN = (1980, 1, 1, 0, 0, 0)
"""Time of every file in an archive: the same cell gives the same bytes."""
OF_EMBEDDED = {"dtype": "float32", "attn_implementation": "sdpa"}
"""What an embedded model is loaded with where nothing is asked for; the cells of format 1 said so, later ones leave it out."""

BEFORE = {"recovery_source": "built-in"}
"""What was so of every cell before cells said it."""


class KeptRecord(Part):
    """What the manifest says of one archive. Which pages have it is said here alone; the rest is told from the archive."""

    sha256: str
    questions: tuple[str, ...] = Field((), description="those whose table shows it")
    cited_by: tuple[str, ...] = Field((), description="those whose page has its numbers in the text alone")
    title: str
    model: str
    method: str
    sparsity: float | None
    basis: str
    seed: int
    recovery: str
    settings: dict[str, Any] = Field(description="what sets it apart from the other kept records of its model, method and recovery")
    protocols: tuple[str, ...]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A cell's config as the program would write it today, without its format; None where it has settings that are no more.

    Settings that came later stand at their defaults, which is what a cell did before them.
    """
    try:
        data = {**BEFORE, **config, "format": CELL_FORMAT}
        if data["method"] != DENSE:
            data["method_config"] = get_pruner(data["method"]).Config.model_validate(data["method_config"]).model_dump(mode="json")
        data["recovery_config"] = get_recovery(data["recovery"]).resolve(data["recovery_config"])
        told = CellConfig.model_validate(data).model_dump(mode="json", exclude={"format"})
    except (PrunebenchError, ValidationError, KeyError, TypeError):
        return None
    if told["model"]["name"].startswith(EMBEDDED_PREFIX):
        told["model"] |= {key: None for key, value in OF_EMBEDDED.items() if told["model"][key] == value}
    return told


class Kept:
    """The archives of one folder and their manifest."""

    def __init__(self, folder: Path) -> None:
        """Reads the manifest; a folder without one holds no records yet.

        Raises:
            BadInput: the manifest can't be read.
        """
        self.folder = folder
        self.entries: dict[str, KeptRecord] = {}
        self._configs: dict[str, dict[str, Any]] = {}
        self._settings: dict[str, dict[str, Any] | None] = {}
        path = folder / MANIFEST
        if not path.exists():
            return
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            self.entries = {cell: KeptRecord.model_validate(entry) for cell, entry in listed.items()}
        except ValidationError as error:
            raise BadInput(sentence(error, KeptRecord, str(path))) from None
        except (OSError, ValueError, AttributeError) as error:
            raise BadInput(f"{path} can't be read ({' '.join(str(error).split())}); take it from the repository again.") from None

    def archive(self, cell: str) -> Path:
        return self.folder / f"{cell}.zip"

    def of(self, question: str) -> list[str]:
        """The cells that a question's table shows."""
        return [cell for cell, entry in self.entries.items() if question in entry.questions]

    def unused(self) -> list[str]:
        """The cells that no page shows or cites."""
        return [cell for cell, entry in self.entries.items() if not entry.questions and not entry.cited_by]

    def config(self, cell: str) -> dict[str, Any]:
        """The config in an archive's record.

        Raises:
            BadInput: there is no such archive, it isn't the one listed, or it holds no record.
        """
        if cell not in self._configs:
            archive = self.archive(cell)
            if cell not in self.entries:
                raise BadInput(f"{archive.name} is not in {MANIFEST}.")
            if not archive.is_file():
                raise BadInput(f"{archive.name} is in {MANIFEST} but not in {self.folder}.")
            if sha256_of(archive) != self.entries[cell].sha256:
                raise BadInput(f"{archive.name} is not the file that {MANIFEST} lists (another SHA-256).")
            self._configs[cell] = _read_config(archive)
        return self._configs[cell]

    def answering(self, wanted: CellConfig, *, as_it_was: bool = False) -> str | None:
        """The kept cell with these settings.

        Args:
            as_it_was: whatever data folder and versions of its protocols it was made with; else with these.
        """
        asked = settings_of(wanted.model_dump(mode="json"))
        for cell in self.entries:
            if cell not in self._settings:
                self._settings[cell] = settings_of(self.config(cell))
            found = self._settings[cell]
            if asked is not None and found is not None and (_loosely(asked) == _loosely(found) if as_it_was else asked == found):
                return cell
        return None

    def restore(self, out: Path, cells: Iterable[str]) -> None:
        """Unpacks those of `cells` that `out` doesn't have finished.

        Raises:
            BadInput: an archive is not there, or not the one that the manifest lists.
        """
        for cell in sorted(cells):
            folder = CellFolder(out, cell)
            if finished_record(folder) is None:
                self.config(cell)
                folder.path.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(self.archive(cell)) as packed:
                    packed.extractall(folder.path)

    def keep(self, out: Path, cells: Iterable[str]) -> None:
        """Packs those of `cells` that are done in `out` and not kept yet."""
        for cell in sorted(cells):
            folder = CellFolder(out, cell)
            if cell in self.entries or finished_record(folder, ("done",)) is None:
                continue
            self.folder.mkdir(parents=True, exist_ok=True)
            files = [folder.record_file, folder.seal_file, folder.path / "masks.safetensors", *sorted(folder.path.glob("samples/*"))]
            temporary = self.archive(cell).with_suffix(".tmp")
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
                for file in files:
                    if file.exists():
                        name = file.relative_to(folder.path).as_posix()
                        packed.writestr(zipfile.ZipInfo(name, WHEN), file.read_bytes(), zipfile.ZIP_DEFLATED)
            temporary.replace(self.archive(cell))
            self._configs[cell] = _read_config(self.archive(cell))
            self.entries[cell] = KeptRecord(sha256=sha256_of(self.archive(cell)), **_told(self._configs[cell], {}))

    def show(self, question: str, cells: Iterable[str]) -> None:
        """Makes those of `cells` that are kept the ones that the question's table shows."""
        shown = set(cells)
        for cell, entry in self.entries.items():
            others = [name for name in entry.questions if name != question]
            questions = tuple(sorted([*others, question] if cell in shown else others))
            self.entries[cell] = entry.model_copy(update={"questions": questions})

    def text(self) -> str:
        """The manifest: every entry as its archive tells it, in the order of ids."""
        configs = {cell: self.config(cell) for cell in sorted(self.entries)}
        alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for cell, config in configs.items():
            alike[config["model"]["name"], config["method"], config["recovery"]].append(cell)
        apart: dict[str, dict[str, Any]] = {}
        for cells in alike.values():
            apart |= dict(zip(cells, set_apart([_distinguishing(configs[cell]) for cell in cells]), strict=True))
        listed = {}
        for cell, config in configs.items():
            entry = self.entries[cell].model_copy(update=_told(config, apart[cell]))
            listed[cell] = entry.model_dump(mode="json")
        return json.dumps(listed, indent=1, ensure_ascii=False) + "\n"

    def write(self) -> None:
        """Writes the manifest."""
        write_text(self.folder / MANIFEST, self.text())

    def problems(self) -> list[str]:
        """A sentence for each way in which manifest and archives disagree."""
        found = []
        for cell in self.entries:
            try:
                self.config(cell)
            except BadInput as error:
                found.append(str(error))
        found += [f"{path.name} is not in {MANIFEST}." for path in sorted(self.folder.glob("*.zip")) if path.stem not in self.entries]
        found += [f"{cell}.zip is shown or cited by no page; take it out of folder and {MANIFEST}." for cell in self.unused()]
        if not found and (self.folder / MANIFEST).read_text(encoding="utf-8") != self.text():
            found.append(f"{MANIFEST} tells of its archives otherwise than they do.")
        return found


def _loosely(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the data folder and the versions of protocols."""
    return {**settings, "data": "", "protocols": [protocol | {"version": ""} for protocol in settings["protocols"]]}


def _read_config(archive: Path) -> dict[str, Any]:
    """The config of the record in an archive.

    Raises:
        BadInput: it holds none, or that of another cell than its name says.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            run = json.loads(packed.read("record.json"))["run"]
        own, config = run["cell_id"], dict(run["config"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{archive.name} holds no readable record ({type(error).__name__}).") from None
    if own != archive.stem:
        raise BadInput(f"{archive.name} holds the record of cell {own}.")
    return config


def _distinguishing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which records of one model, method and recovery may differ, beside sparsity, seed and protocols."""
    return {**config["method_config"], "recovery": config["recovery_config"], "calibration": config["calibration"]}


def _told(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an archive's config says for the manifest, `settings` being what sets it apart."""
    method, sparsity, basis, seed, recovery = (config[key] for key in ("method", "sparsity", "basis", "seed", "recovery"))
    title = method if sparsity is None else f"{method}, {sparsity:.0%} of {basis}, seed {seed}"
    title += f", {recovery}" if recovery != "none" else ""
    title += f" ({in_words(settings)})" if settings else ""
    return {
        "title": title,
        "model": config["model"]["name"],
        "method": method,
        "sparsity": sparsity,
        "basis": basis,
        "seed": seed,
        "recovery": recovery,
        "settings": dict(settings),
        "protocols": tuple(p["name"] + (f", {p['limit']} items" if p["limit"] else "") for p in config["protocols"]),
    }
