"""The engine against lm-eval's `hf` backend on many documents of every suite; long, and no ordinary test run collects it.

    PRUNEBENCH_DATA=DIR python -m pytest tests/evaluation/check_equivalence.py

DIR is a folder of benchmark data. PRUNEBENCH_ITEMS is how many documents of a task (default 100). test_embedded_model.py holds the
same on a few documents each.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from prunebench.evaluation.engine.engine import Engine
from tests.evaluation.agreement import assert_agrees, requests_of

DATA = os.environ.get("PRUNEBENCH_DATA")
ITEMS = int(os.environ.get("PRUNEBENCH_ITEMS", "100"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.skipif(DATA is None, reason="PRUNEBENCH_DATA is not set")]

ALONE = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "race_high")
SUITES = [  # task, shots, stratum, most documents
    *((task, 0, "", ITEMS) for task in ALONE),
    *(("mmlu", 5, subject, 25) for subject in ("abstract_algebra", "philosophy", "human_sexuality", "marketing")),
    *(("bbh_direct", 3, task, 10) for task in ("boolean_expressions", "navigate", "sports_understanding")),
    ("bbh_cot", 3, "boolean_expressions", 3),
]


@pytest.mark.parametrize(("task", "shots", "stratum", "most"), SUITES)
def test_many_documents_are_answered_as_hf_answers_them(embedded: Any, task: str, shots: int, stratum: str, most: int) -> None:
    from lm_eval.models.huggingface import HFLM

    assert DATA is not None
    backend = HFLM(pretrained=embedded.model, tokenizer=embedded.tokenizer, batch_size=4)
    engine = Engine(embedded.model, embedded.tokenizer)
    assert_agrees(engine, backend, embedded.model, *requests_of(task, stratum, shots, min(most, ITEMS), Path(DATA)))
