"""The embedded model against lm-eval's own `hf` backend: equal metrics and texts, log-likelihoods within rounding."""

from __future__ import annotations

from typing import Any

import pytest

from prunebench.evaluation import harness
from prunebench.evaluation.catalogue import known_tasks
from prunebench.evaluation.engine.engine import Engine
from tests.evaluation.agreement import assert_agrees, requests_of

# A few documents of each; check_equivalence.py compares hundreds by the same rule.
SUITES = [
    ("piqa", 0, "", 3),
    ("hellaswag", 0, "", 1),
    ("winogrande", 0, "", 3),
    ("arc_easy", 0, "", 2),
    ("openbookqa", 0, "", 2),
    ("boolq", 0, "", 1),
    ("mmlu", 5, "marketing", 2),
]


@pytest.fixture(scope="module")
def engine(embedded: Any) -> Engine:
    return Engine(embedded.model, embedded.tokenizer)


@pytest.fixture(scope="module")
def backend(embedded: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=embedded.model, tokenizer=embedded.tokenizer, batch_size=1)


@pytest.mark.parametrize(("name", "shots", "stratum", "count"), SUITES)
def test_scores_equal_hf(embedded: Any, engine: Engine, backend: Any, name: str, shots: int, stratum: str, count: int) -> None:
    assert_agrees(engine, backend, embedded.model, *requests_of(name, stratum, shots, count))


BBH_ROWS = [
    {"input": "not ( True ) and ( True ) is", "target": "False"},
    {"input": "True or not False and True is", "target": "True"},
    {"input": "not not not True is", "target": "False"},
]


@pytest.mark.parametrize("name", ["bbh_direct", "bbh_cot"])
def test_generated_answers_equal_hf(engine: Engine, backend: Any, name: str) -> None:
    task = harness.build_task(known_tasks()[name], "boolean_expressions", 3, BBH_ROWS, [])
    instances = [instance for group in harness.build_requests(task) for instance in group]
    for instance in instances:
        instance.args[1]["max_gen_toks"] = 8
    answers = engine.generate_until([instance.args for instance in instances]).responses
    assert answers == backend.generate_until(instances, disable_tqdm=True)
