"""The static site: leaderboard and docs in one folder, no link broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_page import References

from prunebench.leaderboard.site import build_site, main


def docs(folder: Path) -> Path:
    folder.mkdir()
    (folder / "one.md").write_text(
        "# First page\n\nSee [two](sub/two.md#part).\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n<script>alert(1)</script>\n"
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "two.md").write_text("# Second & last\n\n[back](../one.md) ![shot](shot.png)\n")
    (folder / "sub" / "shot.png").write_bytes(b"png")
    return folder


def test_the_site_holds_the_page_and_the_docs_and_every_link_works(grid: Path, page: Path, tmp_path: Path) -> None:
    index = build_site(grid, docs(tmp_path / "docs"), tmp_path / "site")
    assert index.read_bytes() == page.read_bytes()
    for made in (tmp_path / "site" / "docs").rglob("*.html"):
        parser = References()
        parser.feed(made.read_text())
        for reference in parser.found:
            assert reference == "data:," or (made.parent / reference.partition("#")[0]).is_file(), (made, reference)
    assert "<script>" not in (tmp_path / "site" / "docs" / "one.html").read_text()


def test_the_site_is_made_again_but_nothing_else_is_overwritten(
    grid: Path, page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = docs(tmp_path / "docs")
    build_site(grid, source, tmp_path / "site")
    build_site(grid, source, tmp_path / "site")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    assert main([str(grid), "--docs", str(source), "--to", str(mine)]) == 2
    assert (mine / "thesis.txt").exists()
    assert "choose an empty folder" in capsys.readouterr().err


def test_a_folder_without_a_page_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "build it first" in capsys.readouterr().err
