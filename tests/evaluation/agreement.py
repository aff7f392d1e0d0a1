"""What 'the engine answers as lm-eval's `hf` backend does' means on a real model: equal texts and metrics, scores within rounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from prunebench.evaluation import harness
from prunebench.evaluation.catalogue import known_tasks
from prunebench.evaluation.engine.engine import Engine
from prunebench.evaluation.sampling import chosen_indices
from prunebench.evaluation.sources import load_task_data


def requests_of(name: str, stratum: str, shots: int, count: int, data: Path | None = None) -> tuple[Any, list[list[Any]]]:
    """The harness's task over `count` documents and its requests, grouped by document; embedded data where `data` has none."""
    definition = known_tasks()[name]
    rows = load_task_data(definition, stratum, ("data-dir", "embedded") if data else ("embedded",), data, shots)
    chosen = chosen_indices(len(rows.rows), count, 0, name, stratum)
    task = harness.build_task(definition, stratum, shots, [rows.rows[i] for i in chosen], rows.fewshot)
    return task, harness.build_requests(task)


def assert_agrees(engine: Engine, backend: Any, model: Any, task: Any, groups: list[list[Any]]) -> None:
    """Engine and backend answer the requests alike.

    A log-likelihood agrees within 5e-5 a continuation token + 1e-4 of the backend's float32, or within 5e-6 a token + 1e-4 of
    float64, which decides where the two differ more: the backend's log-softmax is the less exact of the two.
    """
    instances = [instance for group in groups for instance in group]
    kind = instances[0].request_type
    answers = getattr(engine, kind)([instance.args for instance in instances]).responses
    expected = getattr(backend, kind)(instances, disable_tqdm=True)
    if kind == "generate_until":
        assert answers == expected
    else:
        double = None
        for answer, other, instance in zip(answers, expected, instances, strict=True):
            context, continuation = backend._encode_pair(*instance.args)
            assert answer[1] == other[1]
            if abs(answer[0] - other[0]) > 5e-5 * len(continuation) + 1e-4:
                double = double or copy.deepcopy(model).double()
                assert abs(answer[0] - exact(double, context, continuation)) <= 5e-6 * len(continuation) + 1e-4
    assert metrics_of(task, groups, instances, answers) == metrics_of(task, groups, instances, expected)


@torch.no_grad()
def exact(double: Any, context: list[int], continuation: list[int]) -> float:
    """Log-likelihood of one continuation by a model in float64."""
    logits = double(torch.tensor([(context + continuation)[:-1]]), use_cache=False).logits[0, -len(continuation) :]
    return float(torch.log_softmax(logits, -1)[range(len(continuation)), continuation].sum())


def metrics_of(task: Any, groups: list[list[Any]], instances: list[Any], responses: list[Any]) -> Any:
    """The harness's own metrics of every document."""
    for instance, response in zip(instances, responses, strict=True):
        instance.resps = [response]
        instance.filtered_resps = {}
    return harness.score_documents(task, groups)
