"""Every question has its grids, its page and its place in the table of all; what is wrong with one is said in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from findings.build import BEGIN, END
from findings.question import ROOT, known_questions, load_question
from prunebench.experiments.load_config import load_config
from prunebench.models.errors import BadInput
from tests.findings.conftest import Desk

PAGES = sorted(ROOT.glob("*/README.md"))


@pytest.mark.parametrize("name", known_questions())
def test_a_question_has_grids_and_a_page_that_says_how_it_is_made(name: str) -> None:
    question = load_question(name)
    for grid in question.grids:
        assert load_config(grid).name.startswith(name)
    page = question.page.read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert f"{BEGIN}\nMade by `{question.command}`; don't edit.\n" in page
    assert END in page


def test_the_table_of_all_questions_names_every_page() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w-]+)/README\.md\)", table)) == {page.parent.name for page in PAGES}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.parent.name)
def test_links_and_figures_of_a_page_are_there(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).is_file(), link


def test_a_question_may_be_named_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)
    assert load_question("findings/oneshot/").name == load_question("oneshot").name == "oneshot"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question: [", "is not readable YAML"),
        ("- a", "holds no keys"),
        ("", "holds no keys"),
        ("grids: [grid.yaml]", "'question' is missing"),
        ("question: Why?\nagianst: x", "Did you mean 'against'?"),
        ("question: Why?\ngrids: []", "grids = [] is not accepted"),
        ("question: Why?\ntasks: perhaps", "tasks = 'perhaps' is not accepted"),
    ],
)
def test_a_question_that_can_not_be_read_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "why").mkdir()
    (tmp_path / "why" / "question.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(words)) as caught:
        load_question("why", tmp_path)
    assert "question.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_that_is_not_there_is_named(desk: Desk) -> None:
    desk.ask(grids=["norms.yaml"])
    with pytest.raises(BadInput, match=r"norms\.yaml does not exist"):
        desk.build(runs=False)
