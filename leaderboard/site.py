"""A static site: the leaderboard of one output folder and the project's docs, in one folder that any server can hold.

python -m prunebench.leaderboard.site OUT --docs docs --to site
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
from importlib import resources
from pathlib import Path

from prunebench.leaderboard.errors import LeaderboardError, MissingExtra

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · prunebench</title>
<link rel="icon" href="data:,">
<style>{css}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme]) {{ --bg: #13161b; --panel: #1a1e25; --ink: #e6e8ec; --muted: #a3abb8;
--line: #2f353f; --soft: #20252d; --accent: #7db8ee; color-scheme: dark; }} }}
main img {{ max-width: 100%; height: auto; }} main table {{ width: auto; margin-bottom: 1rem; }} main th {{ position: static; }}
main thead th {{ padding: 0.42rem 0.7rem; }} main code {{ font: 0.88em var(--mono); }} main h2 {{ margin-top: 1.6rem; }}
</style>
</head>
<body>
<header class="top"><div class="bar"><a class="brand" href="{root}docs/index.html">prunebench</a>
<nav aria-label="Site"><a href="{root}index.html">Leaderboard</a><a href="{root}docs/index.html">Docs</a></nav></div></header>
<main>{body}</main>
</body>
</html>
"""


def build_site(out_dir: Path, docs_dir: Path, site_dir: Path) -> Path:
    """Copy the built leaderboard to `site_dir` and turn every Markdown file of `docs_dir` into a page under `docs/`.

    Returns:
        The site's index.html (the leaderboard).
    Raises:
        LeaderboardError: there is no built leaderboard, or `site_dir` holds something that is no earlier site.
    """
    built = out_dir / "leaderboard"
    if not (built / "index.html").is_file():
        raise LeaderboardError(f"{built} holds no page; build it first with: python run_all.py report --out {out_dir}.")
    marker = site_dir / ".prunebench-site"
    if site_dir.exists() and any(site_dir.iterdir()) and not marker.exists():
        raise LeaderboardError(f"{site_dir} is not empty and no earlier site; choose an empty folder.")
    if site_dir.exists():
        shutil.rmtree(site_dir)
    shutil.copytree(built, site_dir)
    marker.write_text("made by leaderboard.site; it may be removed and made again\n", encoding="utf-8")
    _docs(docs_dir, site_dir / "docs")
    return site_dir / "index.html"


def _docs(docs_dir: Path, target: Path) -> None:
    target.mkdir()
    pages: list[tuple[str, str]] = []
    for source in sorted(p for p in docs_dir.rglob("*") if p.is_file()):
        relative = source.relative_to(docs_dir)
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, target / relative)
            continue
        text = source.read_text(encoding="utf-8")
        found = re.search(r"^#\s+(.+)$", text, re.MULTILINE)
        title = found.group(1).strip() if found else source.stem
        page = relative.with_suffix(".html")
        if page.as_posix() != "index.html":
            pages.append((title, page.as_posix()))
        (target / page).write_text(_page(title, _markdown(text), "../" * len(relative.parts)), encoding="utf-8")
    if not (target / "index.html").exists():
        links = "".join(f'<li><a href="{html.escape(path, quote=True)}">{html.escape(title)}</a></li>' for title, path in pages)
        (target / "index.html").write_text(_page("Docs", f"<h1>Docs</h1><ul>{links}</ul>", "../"), encoding="utf-8")


def _markdown(text: str) -> str:
    """HTML of a docs page; raw HTML in it stays text, links to other .md pages become links to their pages."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtra("the site needs markdown-it-py; install it with: pip install markdown-it-py.") from error
    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return re.sub(r'href="(?!\w+:)([^"#]+)\.md(#[^"]*)?"', r'href="\1.html\2"', made)


def _page(title: str, body: str, root: str) -> str:
    css = (resources.files("prunebench.leaderboard") / "web" / "page.css").read_text(encoding="utf-8")
    return _PAGE.format(title=html.escape(title), css=css, body=body, root=root)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="output folder of a run, with its leaderboard built")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--to", type=Path, default=Path("site"))
    args = parser.parse_args(argv)
    try:
        print(build_site(args.out, args.docs, args.to))
    except LeaderboardError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
