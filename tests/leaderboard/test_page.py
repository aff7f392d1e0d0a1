"""The page and its exports: every number is found again in a record, and nothing in a record can break the page."""

from __future__ import annotations

import csv
import html
import html.parser
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from leaderboard_records import HITS, put, put_scored, record, suite, task

from prunebench.leaderboard import LeaderboardError, build_report
from prunebench.leaderboard.collect import collect
from prunebench.leaderboard.compare import compare
from prunebench.leaderboard.page import slim
from prunebench.leaderboard.record import Record, TaskScore, cell_dir, read_records, write_record
from prunebench.leaderboard.tables import EXPORT, leaderboard


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def rows_of(page: Path, table: str = "main", view: int = 0) -> list[dict[str, Any]]:
    data = data_of(page)["tables"][table][view]
    keys = [c["key"] for c in data["columns"]]
    return [dict(zip(keys, row, strict=True)) for row in data["rows"]]


def notes_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return text[text.index('<details id="notes"') : text.index('<details id="method"')]


def answers_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return html.unescape(text[text.index('<section id="answer"') : text.index('<section id="table"')])


# --- every number comes from a record


def shown_as(value: float, text: str, scale: float = 1.0) -> bool:
    """`text` is `value` rounded to the digits that `text` shows."""
    plain = text.replace("−", "-").replace("+", "").replace("×", "")
    digits = len(plain.split(".")[1]) if "." in plain else 0
    return abs(scale * value - float(plain)) <= 0.5 * 10**-digits + 1e-9


def scores_of(made: Record) -> dict[tuple[str, str], float]:
    found = {}
    for protocol in made.metrics.scores:
        if protocol.mean is not None:
            found[(protocol.protocol, "mean")] = protocol.mean.value
        elif len(protocol.tasks) == 1:
            found[(protocol.protocol, "mean")] = protocol.tasks[0].value
        for one in protocol.tasks:
            found[(protocol.protocol, one.task)] = one.value
    return found


def test_every_score_on_the_page_is_found_again_in_a_record(grid: Path, page: Path) -> None:
    records, _ = read_records(grid)
    checked = 0
    for row in rows_of(page):
        mine = [
            r
            for r in records
            if r.run.method == row["method"][0] and (r.run.sparsity or 0.0) == row["sparsity"][0] and r.run.status == "done"
        ]
        for key, cell in row.items():
            if "|" not in key or not cell or key.endswith(("|rank", "|retention", "|kept", "|margin")):
                continue
            protocol, _, what = key.replace(" (synthetic)", "").partition("|")
            values = [scores_of(r)[(protocol, what.removeprefix("task|"))] for r in mine]
            scale = 1 if "perplexity" in key else 100
            mean = statistics.geometric_mean(values) if "perplexity" in key else statistics.mean(values)
            assert shown_as(mean, cell[1], scale), (key, cell, values)
            assert cell[0] == pytest.approx(mean)
            checked += 1
    assert checked > 40


def test_sizes_costs_and_speeds_on_the_page_are_found_again_in_a_record(grid: Path, page: Path) -> None:
    records, _ = read_records(grid)
    for row in rows_of(page):
        mine = [
            r
            for r in records
            if r.run.method == row["method"][0] and (r.run.sparsity or 0.0) == row["sparsity"][0] and r.run.status == "done"
        ]
        if not mine:
            assert row["params_total"] == 0
            continue
        assert row["params_total"][0] == pytest.approx(sum(r.metrics.params_total or 0 for r in mine) / len(mine))
        assert row["params_blocks"][0] == pytest.approx(sum(r.metrics.params_blocks or 0 for r in mine) / len(mine))
        assert row["latency"][0] == pytest.approx(
            sum(r.metrics.efficiency.latency_ms or 0 for r in mine if r.metrics.efficiency) / len(mine)
        )
        prune = [s.seconds for r in mine for s in r.run.stages if s.name == "prune"]
        if prune:
            assert row["prune_seconds"][0] == pytest.approx(sum(prune) / len(prune))
        else:
            assert row["prune_seconds"] == 0


def test_the_cells_view_shows_every_record_once(grid: Path, page: Path) -> None:
    records, _ = read_records(grid)
    assert sorted(row["cell"][0] for row in rows_of(page, view=1)) == sorted(r.run.cell_id for r in records)


def test_the_records_in_the_page_are_the_records_on_disk(grid: Path, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    chunks = re.findall(r'class="chunk" data-encoding="plain">(.*?)</script>', text, re.DOTALL)
    shown = [Record.model_validate(r) for chunk in chunks for r in json.loads(chunk)]
    records, _ = read_records(grid)
    assert sorted(shown, key=lambda r: r.run.cell_id) == sorted(map(slim, records), key=lambda r: r.run.cell_id)


def test_records_in_the_page_keep_everything_but_the_curves_of_layers(tmp_path: Path) -> None:
    made = record("a")
    made.metrics.curves = {"prune: gates.layer_03": [(0.0, 1.0)] * 9, "prune: loss": [(float(i), 1.0) for i in range(500)]}
    kept = slim(made)
    assert list(kept.metrics.curves) == ["prune: loss"]
    assert len(kept.metrics.curves["prune: loss"]) <= 61
    assert kept.metrics.curves["prune: loss"][-1][0] == 499
    assert kept.model_copy(update={"metrics": made.metrics}) == made
    assert len(made.metrics.curves) == 2


def test_numbers_in_the_answers_stand_in_the_tables(page: Path) -> None:
    shown = re.findall(r"(\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)", answers_of(page))
    assert shown
    cells = {
        (c[1].removesuffix(" %"), c[2].removeprefix("±")) for row in rows_of(page) for k, c in row.items() if c and len(c) > 2 and "|" in k
    }
    assert set(shown) <= cells


def test_a_race_has_at_most_eight_columns_and_dense_always_in_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tables = re.findall(r'<table class="race">.*?</table>', text, re.DOTALL)
    assert len(tables) == len(data_of(page)["races"]) == 8
    for table in tables:
        assert len(re.findall(r"<th scope=\"col\"", table)) <= 8
        assert table.count('class="dense"') == 1


def test_every_race_is_written_out_without_javascript(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    without = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    for word in ("magnitude", "compresso", "Kept above chance", "× dense perplexity"):
        assert word in without


def test_the_races_of_the_page_are_found_again_in_its_records(grid: Path, page: Path) -> None:
    records, _ = read_records(grid)
    values = {round(v, 12) for r in records if r.run.status == "done" for v in scores_of(r).values()}
    found = [p for race in data_of(page)["races"] for p in race["points"] if p[2] != "random"]  # random has three seeds
    assert found
    assert all(round(p[3], 12) in values for p in found)


# --- exports


def csv_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_full_precision_cell_ids_and_the_ends_of_intervals(grid: Path, page: Path) -> None:
    entries, _ = collect(read_records(grid)[0])
    compare(entries, grid)
    rows = csv_of(page.parent / "leaderboard.csv")
    assert len(rows) == len(entries)
    head = "synthetic: commonsense % ↑"
    for entry, row in zip(entries, rows, strict=True):
        assert row["cells"].split() == [r.run.cell_id for r in entry.records]
        if entry.suites:
            mean = entry.suites["commonsense (synthetic)"].mean
            assert mean is not None
            assert mean.interval is not None
            assert float(row[head]) == mean.value
            assert (float(row[f"{head} low"]), float(row[f"{head} high"])) == (mean.interval.low, mean.interval.high)


def test_markdown_shows_what_the_page_shows(grid: Path, page: Path) -> None:
    entries, _ = collect(read_records(grid)[0])
    table = leaderboard(entries, compare(entries, grid))
    shown = [c for c in table.columns if c.group != EXPORT]
    lines = (page.parent / "leaderboard.md").read_text().splitlines()[2:]
    for row, line in zip(rows_of(page), lines, strict=True):
        in_markdown = [c.strip().replace("\\", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        for n, column in enumerate(shown):
            cell = row[column.key]
            text, sub = ("–", "") if not cell else (cell[1], cell[2] if len(cell) > 2 else "")
            assert in_markdown[n] == f"{text} {sub}".strip()


def test_latex_tables_fit_a_column_and_put_the_best_in_bold_with_its_ties(tmp_path: Path) -> None:
    put_scored(tmp_path, "dense", {"x": [1] * 90 + [0] * 10}, sparsity=None)
    put_scored(tmp_path, "one_a", {"x": [1] * 80 + [0] * 20})
    put_scored(tmp_path, "one_b", {"x": [1] * 79 + [0] * 21})
    put_scored(tmp_path, "worse", {"x": [1] * 40 + [0] * 60})
    (path,) = (build_report(tmp_path).parent / "tables").glob("*.tex")
    text = path.read_text()
    assert "\\small" in text
    assert re.search(r"\\label\{tab:[a-z0-9-]+\}", text)
    bold = re.findall(r"^(\S+) & \\textbf", text, re.MULTILINE)
    assert bold == [r"one\_a", r"one\_b"]
    assert len(re.search(r"tabular\}\{(\w+)\}", text)[1]) <= 5  # type: ignore[index]


def test_latex_holds_no_character_that_pdflatex_lacks(page: Path, hostile_page: Path) -> None:
    for path in [*(page.parent / "tables").glob("*.tex"), *hostile_page.parent.rglob("*.tex")]:
        text = path.read_text(encoding="utf-8")
        assert max(map(ord, text)) < 0x180, path
        assert text.count("\\begin{tabular}") == text.count("\\end{tabular}")
        body = re.sub(r"\\[\\{}$&#%_]|\\[a-z]+", "", text)
        assert body.count("{") == body.count("}")
        assert body.count("$") % 2 == 0


def test_results_of_a_record_read_as_those_of_the_harness(page: Path) -> None:
    found = sorted((page.parent / "records").glob("*.results.json"))
    assert len(found) == 12  # of 13 cells, one was skipped
    result = json.loads(found[0].read_text())
    assert set(result["results"]["piqa"]) == {"alias", "acc,none", "acc_stderr,none"}
    assert result["n-samples"]["piqa"] == {"original": 120, "effective": 120}
    assert result["n-shot"]["piqa"] == 0


def test_the_model_card_block_is_read_by_the_hubs_library(page: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(next((page.parent / "records").glob("*.card.md")).read_text())
    assert {(r.dataset_name, r.metric_type) for r in card.data.eval_results} >= {("piqa", "acc"), ("hellaswag", "acc_norm")}
    assert all(0 < r.metric_value <= 100 for r in card.data.eval_results if r.metric_type.startswith("acc"))


def test_there_is_a_table_for_every_sparsity_track_and_suite(page: Path) -> None:
    names = sorted(p.name for p in (page.parent / "tables").glob("*.tex"))
    assert len(names) == 8
    assert sum("no_training" in name for name in names) == sum("300_k_training_tokens" in name for name in names) == 4
    assert all("\\toprule" in (page.parent / "tables" / n).read_text() for n in names)


def test_a_spreadsheet_formula_in_a_name_is_defused(tmp_path: Path) -> None:
    put_scored(tmp_path, '=HYPERLINK("x")', {"x": HITS})
    text = (build_report(tmp_path).parent / "leaderboard.csv").read_text()
    assert "'=HYPERLINK" in text


def test_every_plot_is_there_as_svg_png_and_csv(page: Path) -> None:
    names = {p.stem.removesuffix("_synthetic_m") for p in (page.parent / "plots").glob("*.svg")}
    expected = {"score_vs_sparsity", "perplexity_vs_params", "quality_vs_latency", "quality_vs_cost", "layer_shapes", "layer_heat_map"}
    assert names == expected | {"training_curves"}
    for svg in (page.parent / "plots").glob("*.svg"):
        assert svg.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
        assert len(list(csv.DictReader(svg.with_suffix(".csv").open()))) > 0


def test_the_plotted_points_are_the_scores(grid: Path, page: Path) -> None:
    means = {value for r in read_records(grid)[0] if r.run.status == "done" for (_, task), value in scores_of(r).items() if task == "mean"}
    (plotted,) = (page.parent / "plots").glob("score_vs_sparsity_*.csv")
    with plotted.open() as file:
        rows = [r for r in csv.DictReader(file) if r["seeds"] == "1"]
    assert rows
    assert all(any(abs(float(r["value"]) - m) < 1e-12 for m in means) for r in rows)


def test_training_curves_of_single_layers_leave_the_panels_to_the_others(tmp_path: Path) -> None:
    from prunebench.leaderboard.plots.curves import panels_of

    made = record("compresso")
    names = [f"prune: expected_channels.layer_{i:02d}" for i in range(30)]
    names += ["prune: target_sparsity", "prune: lambda1", "prune: lm_loss", "prune: expected_sparsity", "prune: gate_entropy"]
    made.metrics.curves = {name: [(0.0, 1.0), (1.0, 2.0)] for name in names}
    shown, rows = panels_of(collect([made])[0])
    assert list(shown) == ["loss", "sparsity", "multipliers", "prune: gate_entropy"]
    assert [curve for _, curve, _ in shown["sparsity"]] == ["prune: target_sparsity", "prune: expected_sparsity"]
    assert {row["curve"] for row in rows} == set(names[30:])  # those of layers stay in the records


def test_methods_that_keep_the_same_units_agree(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    for method, kept in (("a", [1, 1, 0, 0]), ("b", [1, 1, 0, 0]), ("c", [0, 0, 1, 1])):
        made = put_scored(tmp_path, method, {"x": HITS})
        mask = np.array(kept, dtype=bool)
        save_file({"ffn.0": mask, "kv_groups.0": mask, "hidden": mask}, cell_dir(tmp_path, made.run.cell_id) / "masks.safetensors")
    path = build_report(tmp_path).parent / "plots" / "agreement_m.csv"
    with path.open() as file:
        found = {(r["a"], r["b"]): float(r["jaccard"]) for r in csv.DictReader(file)}
    assert found[("a", "b")] == 1.0
    assert found[("a", "c")] == 0.0


# --- the file itself


class References(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
                self.found.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_refers_to_nothing_outside_its_folder(page: Path) -> None:
    parser = References()
    parser.feed(page.read_text(encoding="utf-8"))
    for reference in parser.found:
        assert reference == "data:," or reference.startswith("#") or (page.parent / reference).is_file(), reference
    assert len(parser.ids) == len(set(parser.ids))
    targets = {r[1:] for r in parser.found if r.startswith("#")}
    assert targets <= set(parser.ids)


def test_two_builds_of_the_same_records_are_the_same_page(grid: Path, page: Path) -> None:
    before = page.read_bytes()
    assert build_report(grid).read_bytes() == before


def test_progress_is_reported_to_the_end(tmp_path: Path) -> None:
    put_scored(tmp_path, "a", {"x": HITS})
    put_scored(tmp_path, "b", {"x": HITS})
    seen: dict[str, tuple[int, int]] = {}
    build_report(tmp_path, progress=lambda label, done, total: seen.__setitem__(label, (done, total)))
    assert {"read records", "compare methods", "draw plots", "write tables", "write page"} <= set(seen)
    assert all(done == total for done, total in seen.values())


def test_what_is_synthetic_is_marked_everywhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "not measurements" in text
    assert all(row["method"][2] == "synthetic" for row in rows_of(page))
    assert "Synthetic records" in (page.parent / "leaderboard.tex").read_text()


# --- bad input


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    text = build_report(tmp_path).read_text()
    assert "No records" in text


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LeaderboardError, match="does not exist"):
        build_report(tmp_path / "none")


def test_a_folder_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    put_scored(tmp_path, "a", {"x": HITS})
    (tmp_path / "leaderboard").write_text("a file where the folder should be")
    with pytest.raises(LeaderboardError, match="can't be written"):
        build_report(tmp_path)


def test_damaged_foreign_and_duplicate_records_are_noted_on_the_page(tmp_path: Path) -> None:
    good = put_scored(tmp_path, "a", {"x": HITS})
    for name, text in (("cut", '{"schema_version": 1, "run"'), ("future", '{"schema_version": 7}'), ("again", good.model_dump_json())):
        folder = cell_dir(tmp_path, name)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(text)
    page = build_report(tmp_path)
    notes = notes_of(page)
    for word in ("cells/cut/record.json is not valid JSON", "schema version 7", "repeats cell"):
        assert word in notes
    assert len(rows_of(page)) == 1


def test_rows_without_a_usable_sparsity_are_named_however_many_other_notes_there_are(tmp_path: Path) -> None:
    for i in range(210):
        write_record(tmp_path, record("a", cell_id=f"a{i}", config={"method_config": {"i": i}}))  # each: finished without any score
    for sparsity in (-0.5, math.inf, None):
        write_record(tmp_path, record("z", sparsity, cell_id=f"z{sparsity}"))
    notes = notes_of(build_report(tmp_path))
    for said in ("has sparsity -0.5", "has sparsity inf", "has no sparsity"):
        assert f"the record {said}" in notes


def test_nan_scores_and_empty_tasks_are_noted_and_left_out(tmp_path: Path) -> None:
    bad = [task("x", HITS), task("y", HITS, value=math.nan), TaskScore(task="z", metric="acc", value=0.0, n=0)]
    put(tmp_path, record("a", scores=[suite(bad)]))
    page = build_report(tmp_path)
    notes = notes_of(page)
    assert "y (acc) is nan; left out" in notes
    assert "task z has no documents" in notes
    (row,) = rows_of(page)
    assert row["suite|task|x"][1] == "60.0"
    assert "suite|task|y" not in row


@pytest.mark.parametrize("damage", ["missing", "rubbish", "wrong count", "outside", "text column", "nan", "not the score"])
def test_bad_files_of_outcomes_are_noted_and_the_unpaired_test_is_used(tmp_path: Path, damage: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    put_scored(tmp_path, "a", {"x": HITS})
    made = put_scored(tmp_path, "b", {"x": HITS})
    path = cell_dir(tmp_path, made.run.cell_id) / "samples" / "suite__x.parquet"
    ids = [f"i{k}" for k in range(10)]
    if damage == "missing":
        path.unlink()
    elif damage == "rubbish":
        path.write_bytes(b"PAR1 no parquet at all")
    elif damage == "wrong count":
        pq.write_table(pa.table({"item_id": ids[:5], "acc": [1.0] * 5}), path)
    elif damage == "outside":
        made.metrics.scores[0].tasks[0].samples_file = "../../../etc/passwd"
        write_record(tmp_path, made)
    elif damage == "text column":
        pq.write_table(pa.table({"item_id": ids, "acc": ["yes"] * 10}), path)
    elif damage == "nan":
        pq.write_table(pa.table({"item_id": ids, "acc": [math.nan] * 10}), path)
    else:
        pq.write_table(pa.table({"item_id": ids, "acc": [1.0] * 10}), path)
    page = build_report(tmp_path)
    assert "outcomes" in notes_of(page)
    assert [row["test"][1] for row in rows_of(page, "pairs")] == ["unpaired t (no outcomes per item)"]


def test_hostile_names_stay_text(hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    assert "<script>window" not in text
    assert "<img" not in text
    assert "\u202e" not in text.replace("\\u202e", "")[: text.index('class="chunk"')]
    # the only scripts are ours: data, the records, the program
    assert len(re.findall(r"<script\b", text)) == 2 + len(re.findall(r'class="chunk"', text))
    assert all(len(row["method"][1]) < 140 for row in rows_of(hostile_page))


def test_hostile_names_do_not_break_the_exports(hostile_page: Path) -> None:
    rows = list(csv.reader((hostile_page.parent / "leaderboard.csv").open()))
    assert len({len(r) for r in rows}) == 1
    lines = (hostile_page.parent / "leaderboard.md").read_text().splitlines()
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    tex = (hostile_page.parent / "leaderboard.tex").read_text()
    assert "\\input{" not in tex
