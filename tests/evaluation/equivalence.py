"""Holds our evaluation engine to lm-eval's own `hf` backend on many documents: equal metrics and texts, scores within rounding.

    python benchmarks/equivalence.py --data DIR --items 100

A log-likelihood passes within 5e-5 a continuation token + 1e-4 of the harness's float32, or within 5e-6 a token + 1e-4 of
float64, which decides where the two differ more. Exit code 1 if anything fails.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# suite: (task, shots, strata, documents of each stratum; None takes --items)
SUITES: dict[str, tuple[str, int, tuple[str, ...], int | None]] = {
    "boolq": ("boolq", 0, ("",), None),
    "piqa": ("piqa", 0, ("",), None),
    "hellaswag": ("hellaswag", 0, ("",), None),
    "winogrande": ("winogrande", 0, ("",), None),
    "arc_easy": ("arc_easy", 0, ("",), None),
    "arc_challenge": ("arc_challenge", 0, ("",), None),
    "openbookqa": ("openbookqa", 0, ("",), None),
    "race_high": ("race_high", 0, ("",), None),
    "mmlu": ("mmlu", 5, ("abstract_algebra", "philosophy", "human_sexuality", "marketing"), 25),
    "bbh_direct": ("bbh_direct", 3, ("boolean_expressions", "navigate", "sports_understanding"), 10),
    "bbh_cot": ("bbh_cot", 3, ("boolean_expressions",), 3),
}


def run_suite(name: str, loaded: Any, arguments: argparse.Namespace) -> bool:
    """Compares one suite; prints a line; returns whether all of it agrees."""
    from lm_eval.models.huggingface import HFLM

    from prunebench.evaluation import harness
    from prunebench.evaluation.catalogue import known_tasks
    from prunebench.evaluation.engine.engine import Engine
    from prunebench.evaluation.sampling import chosen_indices
    from prunebench.evaluation.sources import load_task_data

    task_name, shots, strata, count = SUITES[name]
    engine = Engine(loaded.model, loaded.tokenizer)
    backend = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=arguments.batch)
    documents = requests = beyond = failed = 0
    same_metrics = True
    largest = 0.0
    for stratum in strata:
        data = load_task_data(known_tasks()[task_name], stratum, ("data-dir", "embedded"), arguments.data, shots)
        chosen = chosen_indices(len(data.rows), count or arguments.items, 0, task_name, stratum)
        task = harness.build_task(known_tasks()[task_name], stratum, shots, [data.rows[i] for i in chosen], data.fewshot)
        groups = harness.build_requests(task)
        instances = [instance for group in groups for instance in group]
        kind = instances[0].request_type
        answers = getattr(engine, kind)([instance.args for instance in instances]).responses
        expected = getattr(backend, kind)(instances, disable_tqdm=True)
        documents, requests = documents + len(groups), requests + len(instances)
        if kind == "generate_until":
            failed += sum(a != b for a, b in zip(answers, expected, strict=True))
        else:
            for answer, other, instance in zip(answers, expected, instances, strict=True):
                context, continuation = backend._encode_pair(*instance.args)
                gap = abs(answer[0] - other[0])
                largest = max(largest, gap)
                if gap > 5e-5 * len(continuation) + 1e-4:
                    beyond += 1
                    truth = exact(loaded.model, context, continuation)
                    failed += abs(answer[0] - truth) > 5e-6 * len(continuation) + 1e-4
        metrics = [scored(harness, task, groups, instances, responses) for responses in (answers, expected)]
        same_metrics &= metrics[0] == metrics[1]
    verdict = "equal" if same_metrics and not failed else "DIFFERS"
    print(f"{name:<15}{documents:>6}{requests:>10}{largest:>12.1e}{beyond:>9}{failed:>8}  {verdict}", flush=True)
    return verdict == "equal"


def scored(harness: Any, task: Any, groups: list[list[Any]], instances: list[Any], responses: list[Any]) -> Any:
    """The harness's own metrics of every document."""
    for instance, response in zip(instances, responses, strict=True):
        instance.resps = [response]
        instance.filtered_resps = {}
    return harness.score_documents(task, groups)


def exact(model: Any, context: list[int], continuation: list[int]) -> float:
    """Log-likelihood of one continuation in float64."""
    import copy

    import torch

    if not hasattr(exact, "model"):
        exact.model = copy.deepcopy(model).double()  # type: ignore[attr-defined]
    with torch.no_grad():
        tokens = torch.tensor([(context + continuation)[:-1]])
        logits = exact.model(tokens, use_cache=False).logits[0, -len(continuation) :]  # type: ignore[attr-defined]
    return float(torch.log_softmax(logits, -1)[range(len(continuation)), continuation].sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="hub id, folder or embedded name")
    parser.add_argument("--data", type=Path, default=None, help="benchmark data folder; BBH and RACE need it")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--items", type=int, default=100, help="documents of each single task")
    parser.add_argument("--batch", type=int, default=4, help="batch size of the harness")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import torch

    from prunebench.models.loading import ModelSpec, load_model

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    loaded = load_model(ModelSpec(name=arguments.model, dtype="float32"))
    print(f"{'suite':<15}{'docs':>6}{'requests':>10}{'largest gap':>12}{'to f64':>9}{'failed':>8}", flush=True)
    return 0 if all([run_suite(name, loaded, arguments) for name in arguments.suites]) else 1


if __name__ == "__main__":
    sys.exit(main())
