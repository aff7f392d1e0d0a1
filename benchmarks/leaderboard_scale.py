"""Builds the page of many synthetic records and sorts it in Chromium: seconds, memory, size, milliseconds a sort.

    python benchmarks/leaderboard_scale.py --records 10000

Bounds for 10,000 records: 60 s, 2 GB, 0.5 s a sort. Exit code 1 over a bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BOUNDS = {"build_seconds": 60.0, "peak_bytes": 2e9, "page_bytes": 15e6, "sort_ms": 200.0, "race_ms": 200.0}
SORT = """key => {
    const button = [...document.querySelectorAll('[data-table=main] thead button')].find(b => b.dataset.key === key);
    const started = performance.now(); button.click(); document.body.offsetHeight; return performance.now() - started;
}"""


def build(out: Path) -> dict[str, float]:
    """Builds in a process of its own, so that its memory is its own."""
    code = f"from pathlib import Path; from prunebench.leaderboard import build_report; build_report(Path({str(out)!r}))"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)
    spent = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"build_seconds": spent, "build_cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


RACE = """at => {
    const bar = document.querySelectorAll('#race select')[at], other = [...bar.options].find(o => o.value !== bar.value);
    const started = performance.now(); bar.value = other.value; bar.dispatchEvent(new Event('change')); document.body.offsetHeight;
    return performance.now() - started;
}"""


def answer_ms(page: Path) -> dict[str, float]:
    """The slowest first sort of the whole table, with one row a record, and the slowest change of the race."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on the PATH; install the package chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-ready]")
        races = [tab.evaluate(RACE, at) for at in (1, 2, 3, 0)]
        tab.locator("#every > summary").click()
        tab.get_by_role("combobox", name="Rows").select_option("1")
        spent = [tab.evaluate(SORT, key) for key in ("method", "commonsense (synthetic)|mean", "seed")]
        browser.close()
    return {"sort_ms": max(spent), "race_ms": max(races)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    arguments = parser.parse_args()
    from prunebench.leaderboard import synthetic

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        synthetic.make(out, arguments.records)
        result = {"records": arguments.records, **build(out)}
        page = out / "leaderboard/index.html"
        result |= {"page_bytes": page.stat().st_size, **answer_ms(page)}
    print(json.dumps(result, indent=2))
    over = [name for name, bound in BOUNDS.items() if result[name] > bound]
    print(f"over the bound: {', '.join(over)}" if over else "within every bound", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
