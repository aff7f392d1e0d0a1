"""Questions, each a folder with its grids, its page and its figures; `python -m findings.build QUESTION` makes the page's table."""
