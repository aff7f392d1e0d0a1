"""Turns the collected tables of the papers (paper_tables.json) into the YAML files beside this one.

    python -m prunebench.leaderboard.published.convert paper_tables.json

Every number keeps its paper, table, source, model, counting rule and whether it was verified (seen verbatim in an
opened source) or only recalled. Nothing is typed by hand here; correct the JSON and convert again.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

COUNTING = {"2305.11627": "total", "2312.11983": "blocks", "2402.09773": "blocks"}
NOT_STATED = "not established"
SUITE = "commonsense_llm_pruner"
PLAIN = {
    "mmlu_5shot": ("mmlu_generative", "mean", "exact_match", "%"),
    "bbh_3shot": ("bbh_generative_compresso", "mean", "exact_match", "%"),
    "mmlu": (None, "mmlu", "acc", "%"),
    "relative_to_dense_percent": (SUITE, "retention", "share of dense", "%"),
    "reading_gain_over_dense_points": (None, "reading gain over dense", "points", "points"),
    "macs_G": (None, "MACs", "MACs", "G"),
    "memory_MiB": (None, "memory", "memory", "MiB"),
    "latency_s": (None, "latency", "latency", "s"),
    "tokens_per_second": (None, "tokens per second", "speed", "tok/s"),
    "c4_loss": (None, "C4 loss", "loss", "nats"),
}


SEEN = (
    ("excerpt", "search excerpt"),
    ("abstract", "abstract"),
    ("figure", "figure"),
    ("log", "run log"),
    ("memory", "memory"),
    ("not found", "memory"),
    ("repository", "text"),
    ("readme", "text"),
)
"""How a number was seen, by the first of these words in the description of its source."""
CLAIMS = "claims in the abstract"
AT_LEAST = ("relative_to_dense_percent", "reading_gain_over_dense_points")
"""Of a claim these are what a method keeps or gains at least; other claims ('up to') bound nothing from below."""


def seen(source: str) -> str:
    """In what a number was seen: table figure, text, abstract, run log, or only a search excerpt.

    Raises:
        ValueError: the description names none of them.
    """
    for word, kind in SEEN:
        if word in source.lower():
            return kind
    raise ValueError(f"source {source!r} does not say how the numbers were seen; name one of {', '.join(w for w, _ in SEEN)}.")


def convert(source: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tables by paper, in the form of the YAML files."""
    papers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in source["tables"]:
        papers[table["paper"]].append(_table(table))
    return papers


def _table(table: dict[str, Any]) -> dict[str, Any]:
    counting = COUNTING.get(table["paper"], NOT_STATED)
    keep = ("table", "source", "harness", "metrics_confidence", "ppl", "finetune", "note")
    about = {key: table[key] for key in keep if key in table}
    return {
        "id": table["id"],
        **about,
        "seen": seen(table["source"]),
        "counting": counting,
        "rows": [_row(table, row) for row in table["rows"]],
    }


def _row(table: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "model": row["model"],
        "method": row["method"],
        "sparsity": row["pruned"],
        "finetuned": row["finetuned"],
        "verified": table["confidence"] == "verified" and row["confidence"] == "verified",
    }
    if "params_kept" in row:
        made["params_kept"] = row["params_kept"]
    if "note" in row:
        made["note"] = row["note"]
        made["comparable"] = "not comparable" not in row["note"]
    made["numbers"] = list(_numbers(table, row))
    return made


def _numbers(table: dict[str, Any], row: dict[str, Any]) -> Any:
    tasks = row.get("tasks") or {}
    protocol = "commonsense_compresso" if "storycloze_2018" in tasks else "reading" if "race_high" in tasks else SUITE
    metrics = table.get("metrics")
    for task, value in tasks.items():
        metric = metrics.get(task, "acc") if isinstance(metrics, dict) else "acc"
        yield _number(protocol, task, metric, value, "%")
    if row.get("average") is not None:
        named = protocol if tasks or isinstance(metrics, dict) else None
        yield _number(named, "mean", "mean of tasks", row["average"], "%")
    for metric in ("acc", "acc_norm"):
        for task, value in row.get(metric, {}).items():
            yield _number(SUITE, task, metric, value, "%")
    for name in ("wikitext2", "ptb"):
        if f"{name}_ppl" in row:
            found = re.match(r"(\d+) tokens", str(table.get("ppl", "")))
            yield _perplexity(name, found.group(1) if found else "?", row[f"{name}_ppl"])
    for length, values in row.get("ppl", {}).items():
        for name, value in values.items():
            yield _perplexity(name, length, value)
    for key, (suite, quantity, metric, unit) in PLAIN.items():
        if row.get(key) is not None:
            is_claim = table["table"] == CLAIMS and key in AT_LEAST
            yield _number(suite, quantity, metric, row[key], unit) | ({"relation": "at least"} if is_claim else {})
    for suite, value in row.get("max_gain_over_LLM-Pruner_points", {}).items():
        yield _number(None, f"largest gain over LLM-Pruner, {suite}", "points", value, "points")


def _perplexity(name: str, length: str, value: float) -> dict[str, Any]:
    protocol = f"perplexity_{length}" if length in ("128", "2048") else None
    return _number(protocol, f"{name}_{length}", "token_perplexity", value, "ppl")


def _number(protocol: str | None, quantity: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"protocol": protocol, "quantity": quantity, "metric": metric, "value": value, "unit": unit}


def main(argv: list[str]) -> int:
    import yaml

    source = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    folder = Path(__file__).parent
    for paper, tables in convert(source).items():
        text = yaml.safe_dump({"paper": paper, "tables": tables}, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
        (folder / f"arxiv_{paper}.yaml").write_text(
            f"# Made by leaderboard.published.convert; not edited by hand.\n{text}", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
