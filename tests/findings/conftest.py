"""A question on a tiny model, in a findings folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from findings.build import build
from findings.kept import Kept
from findings.question import Question, load_question
from tests.experiments.support import Bench, grid_config


class Desk:
    """A findings folder with the question `norms`, and the model and data that its grid needs."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.root = folder / "findings"
        self.ask(grid={"method": [{"name": "magnitude", "config": {"norm": norm}} for norm in ("l1", "l2")]}, against="magnitude · norm=l2")

    def ask(self, *, grid: dict[str, Any] | None = None, page: str | None = None, **question: Any) -> None:
        """Writes what is given of the question, its grid and its page."""
        folder = self.root / "norms"
        folder.mkdir(parents=True, exist_ok=True)
        if grid is not None:
            (folder / "grid.yaml").write_text(yaml.safe_dump(grid_config(self.bench.model, grid=grid)), encoding="utf-8")
        if question:
            (folder / "question.yaml").write_text(yaml.safe_dump({"question": "Which norm?", **question}), encoding="utf-8")
        if page is not None:
            (folder / "README.md").write_text(page, encoding="utf-8")

    @property
    def question(self) -> Question:
        return load_question("norms", self.root)

    @property
    def kept(self) -> Kept:
        return Kept(self.root / "records")

    @property
    def page(self) -> str:
        return self.question.page.read_text(encoding="utf-8")

    @property
    def archives(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in sorted((self.root / "records").glob("*.zip"))}

    def build(self, *, runs: bool = True, out: str = "out") -> int:
        return build(self.question, self.kept, self.bench.folder / out, self.bench.data if runs else None)

    def copy(self, folder: Path) -> Desk:
        """The same model and data, and a copy of the question and its records."""
        other = object.__new__(Desk)
        other.bench, other.root = object.__new__(Bench), folder / "findings"
        other.bench.__dict__ |= self.bench.__dict__ | {"folder": folder}
        shutil.copytree(self.root, other.root)
        return other


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A question whose grid (dense, magnitude by two norms) was run; tests must not change it."""
    desk = Desk(tmp_path_factory.mktemp("answered"))
    assert desk.build() == 0
    return desk


@pytest.fixture
def desk(answered: Desk, tmp_path: Path) -> Desk:
    """A copy of the answered question, with no output folder."""
    return answered.copy(tmp_path)
