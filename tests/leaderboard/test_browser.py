"""The page in a real browser: Debian's headless Chromium, driven by path. No request may leave the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunebench.leaderboard import build_report, synthetic
from prunebench.leaderboard import page as page_module
from prunebench.leaderboard.collect import collect
from prunebench.leaderboard.compare import Comparisons
from prunebench.leaderboard.page import Content, render
from prunebench.leaderboard.tables import leaderboard

pytestmark = pytest.mark.browser
DESKTOP, PHONE = {"width": 1320, "height": 900}, {"width": 390, "height": 844}
SHOTS = os.environ.get("PRUNEBENCH_SCREENSHOTS")


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.fail("the browser tests need Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


class Tab:
    """A page opened from disk that remembers errors and every request."""

    def __init__(self, browser: Any, path: Path, viewport: dict[str, int], scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def column(self, table: str, key: str) -> list[str]:
        """Texts of one shown column."""
        heads = self.page.locator(f"[data-table={table}] thead button").evaluate_all("list => list.map(b => b.dataset.key)")
        return self.page.locator(f"[data-table={table}] tbody tr").evaluate_all(
            "(rows, i) => rows.map(r => [...r.children[i].childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(''))",
            heads.index(key),
        )


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Tab]:
    opened = Tab(browser, page, DESKTOP)
    yield opened
    assert opened.errors == []
    assert opened.requests == [page.as_uri()]
    opened.context.close()


def axe(tab: Tab) -> list[str]:
    """Serious and critical accessibility faults, by axe-core."""
    import axe_playwright_python

    # The page forbids what is not its own, so the checker is evaluated, not loaded.
    tab.page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = tab.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}: {v['help']}: {[n['html'][:160] for n in v['nodes'][:3]]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]


def shot(tab: Tab, name: str) -> None:
    """A screenshot, kept where PRUNEBENCH_SCREENSHOTS says; taken in any case, since taking it can fail."""
    data = tab.page.screenshot(path=str(Path(SHOTS) / f"{name}.png") if SHOTS else None)
    assert len(data) > 10_000


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(tab: Tab) -> None:
    heading = tab.page.locator("[data-table=main] thead th", has_text="commonsense")
    heading.locator("button").click()
    values = [float(v) for v in tab.column("main", "commonsense (synthetic)|mean") if v != "–"]
    assert heading.get_attribute("aria-sort") == "descending"
    heading = tab.page.locator("[data-table=main] thead th", has_text="commonsense")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert len(values) == 8
    assert values == sorted(values, reverse=True)
    assert tab.page.locator("[data-table=main] tbody tr").last.inner_text().count("–") >= 2  # missing ones stay last


def test_lower_is_better_columns_sort_upwards_first(tab: Tab) -> None:
    heading = tab.page.locator("[data-table=main] thead th", has_text="Params")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"


def test_filters_and_search_narrow_the_table_and_say_so(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("combobox", name="Method", exact=True).first.select_option("magnitude")
    assert set(page.locator("[data-table=main] tbody th button").all_inner_texts()) == {"magnitude"}
    assert "2 of" in page.locator("[data-table=main] .count").inner_text()
    page.get_by_role("combobox", name="Sparsity", exact=True).first.select_option("50 %")
    assert page.locator("[data-table=main] tbody tr").count() == 1
    page.get_by_role("combobox", name="Method", exact=True).first.select_option("")
    page.get_by_role("combobox", name="Sparsity", exact=True).first.select_option("")
    page.locator("[data-table=main] input[type=search]").fill("short_gpt skipped")
    assert page.locator("[data-table=main] tbody th button").all_inner_texts() == ["short_gpt"]
    page.locator("[data-table=main] input[type=search]").fill("nothing like this")
    assert "No row matches" in page.locator("[data-table=main]").inner_text()


def test_choosing_a_suite_shows_its_tasks_and_choosing_cells_shows_every_record(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("combobox", name="Columns").select_option("commonsense (synthetic)")
    assert "hellaswag" in page.locator("[data-table=main] thead").inner_text()
    page.get_by_role("combobox", name="Rows").select_option("1")
    assert page.locator("[data-table=main] tbody tr").count() == 13


def test_details_show_command_config_shape_curves_and_tests(tab: Tab) -> None:
    page = tab.page
    page.locator("[data-table=main] tbody th button", has_text="compresso").first.click()
    dialog = page.locator("dialog[open]")
    text = dialog.inner_text()
    for word in ("compresso", "leaderboard.synthetic OUT", "Shape", "Training curves", "Against the others", "paired t over items"):
        assert word in text or word in dialog.inner_html(), word
    dialog.locator("summary", has_text="Configuration").click()
    assert '"method": "compresso"' in dialog.inner_text()
    shot(tab, "details")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.textContent") == "compresso"


def test_a_cell_that_did_not_finish_opens_with_its_reason(tab: Tab) -> None:
    tab.page.locator("#unfinished button").first.click()
    assert "synthetic skip" in tab.page.locator("dialog[open]").inner_text()


def test_the_theme_follows_the_system_and_the_switch(browser: Any, page: Path) -> None:
    for scheme, other in (("light", "dark"), ("dark", "light")):
        tab = Tab(browser, page, DESKTOP, scheme)
        assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme
        before = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.page.locator("#theme").click()
        assert tab.page.evaluate("document.documentElement.dataset.theme") == other
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        tab.page.reload()
        tab.page.wait_for_selector("body[data-ready]")
        assert tab.page.evaluate("document.documentElement.dataset.theme") == other
        tab.context.close()


def focused(tab: Tab) -> str:
    return tab.page.evaluate("(document.activeElement.dataset.key || document.activeElement.textContent).slice(0, 60)")


def test_everything_works_by_keyboard_alone(tab: Tab) -> None:
    keyboard = tab.page.keyboard
    keyboard.press("Tab")
    assert focused(tab) == "Skip to the table"
    keyboard.press("Enter")
    for _ in range(12):
        keyboard.press("Tab")
        if focused(tab) == "method":
            break
    assert focused(tab) == "method"
    keyboard.press("Enter")
    assert tab.page.locator("[data-table=main] thead th").first.get_attribute("aria-sort") == "ascending"
    assert focused(tab) == "method"  # sorting keeps the place
    assert "sorted by Method, ascending" in tab.page.locator("#live").inner_text()
    for _ in range(12):
        keyboard.press("Tab")
        if focused(tab) == "compresso":
            break
    keyboard.press("Enter")
    tab.page.wait_for_selector("dialog[open]")
    keyboard.press("Escape")
    assert focused(tab) == "compresso"
    point = tab.page.locator("#plots .tip").first
    point.focus()
    keyboard.press("Shift+Tab")
    keyboard.press("Tab")
    assert tab.page.locator("#tooltip").is_visible()
    keyboard.press("Escape")
    assert not tab.page.locator("#tooltip").is_visible()


def test_points_of_the_plots_have_tooltips(tab: Tab) -> None:
    point = tab.page.locator("#plots .tip").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    assert tab.page.locator("#tooltip").inner_text() == point.get_attribute("data-tip")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault_and_nothing_overflows(browser: Any, page: Path, viewport: dict[str, int], scheme: str) -> None:
    tab = Tab(browser, page, viewport, scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot(tab, f"{'phone' if viewport is PHONE else 'desktop'}_{scheme}")
    assert axe(tab) == []
    tab.page.locator("[data-table=main] tbody th button", has_text="compresso").first.click()
    tab.page.wait_for_selector("dialog[open]")
    assert axe(tab) == []
    assert tab.errors == []
    assert tab.requests == [page.as_uri()]
    tab.context.close()


def test_the_page_prints_without_its_controls(browser: Any, page: Path) -> None:
    tab = Tab(browser, page, DESKTOP, "dark")
    tab.page.emulate_media(media="print")
    assert not tab.page.locator(".controls").first.is_visible()
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.page.pdf(format="A4")[:5] == b"%PDF-"
    tab.context.close()


def test_hostile_records_run_no_script_and_break_nothing(browser: Any, hostile_page: Path) -> None:
    tab = Tab(browser, hostile_page, PHONE)
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    buttons = tab.page.locator("[data-table=main] tbody th button")
    for i in range(buttons.count()):
        buttons.nth(i).click()
        tab.page.wait_for_selector("dialog[open]")
        assert tab.page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
        tab.page.keyboard.press("Escape")
    assert tab.page.evaluate("window.hacked") is None
    assert tab.errors == []
    assert tab.requests == [hostile_page.as_uri()]
    assert axe(tab) == []
    tab.context.close()


def test_packed_records_open_too(browser: Any, grid: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "PLAIN_LIMIT", 0)
    shutil.copytree(grid / "cells", tmp_path / "cells")
    packed = build_report(tmp_path)
    assert 'data-encoding="gzip"' in packed.read_text()
    tab = Tab(browser, packed, DESKTOP)
    tab.page.locator("[data-table=main] tbody th button", has_text="compresso").first.click()
    tab.page.wait_for_selector("dialog[open]")
    assert "leaderboard.synthetic OUT" in tab.page.locator("dialog[open]").inner_html()
    assert tab.errors == []
    tab.context.close()


def test_ten_thousand_cells_are_sorted_whole(browser: Any, tmp_path: Path) -> None:
    made = [record for record, _ in synthetic.records(synthetic.settings(10_000), documents=20, samples=False)]
    for record in made:  # no details are opened here
        record.metrics.shapes, record.metrics.curves = [], {}
    entries, notes = collect(made)
    main = leaderboard(entries, Comparisons())
    content = Content(entries, Comparisons(), main, None, [], None, "", [], [], notes)
    path = tmp_path / "index.html"
    path.write_text(render(content), encoding="utf-8")
    tab = Tab(browser, path, DESKTOP)
    tab.page.get_by_role("combobox", name="Rows").select_option("1")
    assert tab.page.locator("[data-table=main] .count").inner_text() == "10000 rows"
    tab.page.locator("[data-table=main] thead th button[data-key=seed]").click()
    first = tab.column("main", "seed")[0]
    tab.page.locator("[data-table=main] thead th button[data-key=seed]").click()
    ends = {int(first), int(tab.column("main", "seed")[0])}
    seeds = [record.run.seed for record in made]
    assert ends == {min(seeds), max(seeds)}
    assert tab.errors == []
    tab.context.close()
