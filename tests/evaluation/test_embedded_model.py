"""The embedded model against lm-eval's own `hf` backend: equal metrics and texts, log-likelihoods within rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunebench.evaluation import harness
from prunebench.evaluation.catalogue import known_tasks
from prunebench.evaluation.engine.engine import Engine
from prunebench.evaluation.engine.scoring import ScoreRequest
from prunebench.evaluation.sampling import chosen_indices
from prunebench.evaluation.sources import load_task_data

# A few documents of each; benchmarks/evaluator.py compares hundreds by the same rule.
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


def groups_of(name: str, shots: int, stratum: str, count: int) -> tuple[Any, list[list[Any]]]:
    definition = known_tasks()[name]
    data = load_task_data(definition, stratum, ("embedded",), None, shots)
    chosen = chosen_indices(len(data.rows), count, 0, name, stratum)
    task = harness.build_task(definition, stratum, shots, [data.rows[i] for i in chosen], data.fewshot)
    return task, harness.build_requests(task)


def exact(model: Any, requests: list[ScoreRequest]) -> list[float]:
    """float64 log-likelihoods of a few requests."""
    with torch.no_grad():
        totals = []
        for request in requests:
            logits = model(torch.tensor([list(request.inputs)]), use_cache=False).logits[0, -len(request.targets) :]
            logs = torch.log_softmax(logits, -1)
            totals.append(float(logs[range(len(request.targets)), list(request.targets)].sum()))
    return totals


@pytest.mark.parametrize(("name", "shots", "stratum", "count"), SUITES)
def test_scores_equal_hf(embedded: Any, engine: Engine, backend: Any, name: str, shots: int, stratum: str, count: int) -> None:
    task, groups = groups_of(name, shots, stratum, count)
    instances = [instance for group in groups for instance in group]
    answers = engine.loglikelihood([instance.args for instance in instances]).responses
    expected = backend.loglikelihood(instances, disable_tqdm=True)
    beyond = []
    for place, (answer, other, instance) in enumerate(zip(answers, expected, instances, strict=True)):
        context, continuation = backend._encode_pair(*instance.args)
        assert answer[1] == other[1]
        if abs(answer[0] - other[0]) > 5e-5 * len(continuation) + 1e-4:
            beyond.append((place, context, continuation))
    if beyond:  # the harness's float32 log-softmax is the less exact of the two: float64 decides
        double = type(embedded.model)(embedded.model.config).double().eval()
        double.load_state_dict(embedded.model.state_dict())
        for place, context, continuation in beyond:
            (total,) = exact(double, [ScoreRequest((context + continuation)[:-1], continuation)])
            assert abs(answers[place][0] - total) <= 5e-6 * len(continuation) + 1e-4
    for responses, scored in ((answers, "ours"), (expected, "hf")):
        for instance, response in zip(instances, responses, strict=True):
            instance.resps = [response]
            instance.filtered_resps = {}
        metrics = harness.score_documents(task, groups)
        if scored == "ours":
            ours = metrics
    assert metrics == ours


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
