"""A question: the folder that holds its grids, its page and its figures, and what its table shows."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from prunebench.experiments.config import Part
from prunebench.models.errors import BadInput
from prunebench.models.suggest import sentence, unknown

ROOT = Path(__file__).resolve().parent
FILE = "question.yaml"


class QuestionFile(Part):
    """One question.yaml."""

    question: str = Field(min_length=1, description="the heading of a new page")
    grids: tuple[str, ...] = Field(("grid.yaml",), min_length=1, description="files beside this one, run one after the other")
    against: str | None = Field(None, description="method (and settings) from which all other rows are told apart, as the table names it")
    tasks: bool = Field(False, description="show every task that has a chance level too")


class Question(Part):
    """A folder and what its question.yaml says."""

    folder: Path
    file: QuestionFile

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def page(self) -> Path:
        return self.folder / "README.md"

    @property
    def grids(self) -> list[Path]:
        return [self.folder / name for name in self.file.grids]

    @property
    def command(self) -> str:
        """What makes the table of its page."""
        return f"python -m findings.build {self.name} --data DIR"


def known_questions(root: Path = ROOT) -> list[str]:
    """Names of all folders with a question.yaml, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{FILE}"))


def load_question(name: str, root: Path = ROOT) -> Question:
    """The question of that name; its folder will do too (`findings/NAME/`).

    Raises:
        BadInput: no such question, or a question.yaml that can't be read.
    """
    known = known_questions(root)
    wanted = Path(name).name if Path(name).resolve().parent == root.resolve() else name
    if wanted not in known:
        raise unknown("question", name, known)
    path = root / wanted / FILE
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} is not readable YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds no keys; it needs question, and may have grids, against and tasks.")
    try:
        return Question(folder=path.parent, file=QuestionFile.model_validate(data))
    except ValidationError as error:
        raise BadInput(sentence(error, QuestionFile, str(path))) from None
