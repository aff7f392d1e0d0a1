"""The page of every kept record in one folder: real variants, tracks, suites and curves, as a reader meets them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_browser import Tab, browser, check_charts  # noqa: F401 - browser is a fixture

from prunebench.leaderboard import build_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
SCREEN = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all archives of kept records (findings/kept.py)."""
    archives = sorted((ROOT / "findings" / "records").glob("*.zip"))
    assert len(archives) > 20
    out = tmp_path_factory.mktemp("kept")
    for archive in archives:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(out / "cells" / archive.stem)
    return build_report(out)


@pytest.fixture(scope="module")
def opened(browser: Any, kept: Path) -> Iterator[Tab]:  # noqa: F811
    tab = Tab(browser, kept, SCREEN)
    yield tab
    assert tab.errors == []
    tab.context.close()


def races(tab: Tab) -> list[str]:
    return tab.page.evaluate("JSON.parse(document.getElementById('data').textContent).races.map(r => r.hash)")


def go(tab: Tab, index: int, name: str) -> None:
    tab.page.evaluate("h => { location.hash = 'race=' + encodeURIComponent(h); }", name)
    tab.page.wait_for_function("i => !document.querySelector(`.answer[data-race='${i}']`).hidden", arg=index)
    for button in tab.page.locator("#table .of-race:not([hidden]) .fold[aria-expanded=false]").all():
        button.click()


def test_the_page_is_under_3_megabytes(kept: Path) -> None:
    assert kept.stat().st_size < 3_000_000
    assert max(p.stat().st_size for p in kept.parent.rglob("*")) < 10_000_000


def test_names_are_unique_and_never_wrap_and_no_text_of_a_chart_is_cut_or_overlaps(opened: Tab) -> None:
    names = "list => list.map(th => [th.innerText.split('\\n')[0], th.querySelector('button').getBoundingClientRect().height])"
    for index, name in enumerate(races(opened)):
        go(opened, index, name)
        found = opened.page.locator("#table .of-race:not([hidden]) tbody th").evaluate_all(names)
        told = [text for text, _ in found]
        assert len(set(told)) == len(told), name
        assert max(height for _, height in found) < 48, name  # two lines
        check_charts(opened)
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_matrix_shows_its_verdicts_without_scrolling(opened: Tab) -> None:
    for index, name in enumerate(races(opened)):
        go(opened, index, name)
        box = opened.page.locator("#pairs .of-race:not([hidden]) .matrixbox")
        assert box.evaluate("b => b.scrollWidth <= b.clientWidth && b.scrollHeight <= b.clientHeight")
        assert box.bounding_box()["height"] < SCREEN["height"]  # type: ignore[index]


def test_collapsed_models_are_marked_and_never_praised(opened: Tab) -> None:
    text = opened.page.content()
    assert text.count('class="chip">collapsed') > 3
    assert "share first place" not in text or "3621" not in text


def test_the_dense_models_guessing_is_told(opened: Tab) -> None:
    index = next(i for i, name in enumerate(races(opened)) if "commonsense_llm_pruner" in name)
    go(opened, index, races(opened)[index])
    answer = opened.page.locator(".answer:not([hidden])").inner_text()
    assert "The dense model is at chance on boolq (41.5, chance 62.2)" in answer
    assert "101 %" not in answer
