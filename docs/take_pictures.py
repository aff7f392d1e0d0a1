"""Takes the pictures of leaderboard.md, beside it, from the page of real records.

python docs/take_pictures.py results/demo
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

DESKTOP, PHONE = {"width": 1320, "height": 900}, {"width": 390, "height": 844}


def take(page: Path, folder: Path) -> None:
    """Desktop, phone, the table in the dark, and the details of the last row."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on the PATH; install the package chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, viewport, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "light"), ("dark", DESKTOP, "dark")):
            tab = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("body[data-ready]")
            if name == "dark":
                tab.locator("#table").evaluate("section => section.scrollIntoView()")
            tab.screenshot(path=folder / f"leaderboard-{name}.png")
            if name == "desktop":
                tab.locator("#table .of-race:not([hidden]) [data-open]").last.click()
                tab.wait_for_selector("dialog[open]")
                tab.screenshot(path=folder / "leaderboard-details.png")
            tab.close()
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of a grid whose page is built")
    arguments = parser.parse_args()
    page = arguments.out / "leaderboard/index.html"
    if not page.is_file():
        raise SystemExit(f"{page} does not exist; build it with: python run_all.py report --out {arguments.out}")
    take(page, Path(__file__).resolve().parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
