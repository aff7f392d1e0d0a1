"""Times our evaluation engine against lm-eval's own `hf` backend on the same requests, in one process.

    python benchmarks/evaluator.py --data DIR --items 100 --rounds 3

Both sides get the same `Instance` objects, take turns, run on one thread, and report the minimum of the rounds. The
harness runs at its best batch size of 1, 2, 4, 8 and 16, chosen on the first quarter of the requests. The floor is the number
of floating-point operations of the distinct tokens over the matrix rate measured in the same run: what a perfect
evaluator without attention overhead, normalisation or softmax would need.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SUITES = {
    "piqa": ("piqa", 0),
    "hellaswag": ("hellaswag", 0),
    "winogrande": ("winogrande", 0),
    "arc_easy": ("arc_easy", 0),
    "openbookqa": ("openbookqa", 0),
    "boolq": ("boolq", 0),
    "mmlu": ("mmlu", 5),
    "bbh": ("bbh_direct", 3),
}
BATCH_SIZES = (1, 2, 4, 8, 16)


@dataclass
class Line:
    """One suite's outcome; seconds are minima over rounds."""

    suite: str
    documents: int
    requests: int
    harness_seconds: float
    harness_batch: int
    our_seconds: float
    ratio: float
    tokens_computed: int
    floor_seconds: float
    over_floor: float
    largest_difference: float
    differing_answers: int


def matrix_rate(model: Any) -> float:
    """Floating-point operations a second of the model's own projections at 512 rows: the best of 20 repeats."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)}
    best = 0.0
    for out_features, in_features in shapes:
        left, weight = torch.randn(512, in_features), torch.randn(out_features, in_features)
        for _ in range(20):
            started = clock()
            F.linear(left, weight)
            best = max(best, 2 * 512 * out_features * in_features / (clock() - started))
    return best


def floor_operations(model: Any, sequences: list[tuple[list[int], int]], generated: int) -> float:
    """Operations of the distinct tokens: projections, attention over each token's own context, scored logits.

    Args:
        sequences: (input tokens, how many of the last positions are scored). generated: tokens decoded one by one.
    """
    from torch import nn

    from prunebench.evaluation.engine.prefix_tree import Node, build_tree

    head = model.get_output_embeddings()
    block = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    heads = sum(m.q_proj.out_features if hasattr(m, "q_proj") else 0 for m in model.modules() if hasattr(m, "o_proj"))
    tree = build_tree([tokens for tokens, _ in sequences])
    scored: dict[int, int] = {i: count for i, (_, count) in enumerate(sequences)}
    total = 0.0

    def visit(node: Node) -> int:
        """Adds the subtree; returns the lowest depth that is scored below."""
        nonlocal total
        lowest = min([node.end - scored[t] for t in node.terminals] + [visit(child) for child in node.children])
        for depth in range(node.start, node.end):
            total += 2 * block + 4 * heads * (depth + 1)
        total += 2 * head.weight.numel() * max(0, node.end - max(node.start, lowest))
        return lowest

    visit(tree)
    return total + generated * 2 * (block + head.weight.numel())


def build_instances(suite: str, arguments: argparse.Namespace) -> tuple[list[Any], int]:
    """Harness requests of a suite, and how many documents they come from."""
    from prunebench.evaluation.catalogue import known_tasks
    from prunebench.evaluation.harness import build_requests, build_task
    from prunebench.evaluation.sampling import chosen_indices
    from prunebench.evaluation.sources import load_task_data

    name, shots = SUITES[suite]
    definition = known_tasks()[name]
    count = {"mmlu": arguments.per_subject, "bbh": arguments.per_task}.get(suite, arguments.items)
    instances: list[Any] = []
    documents = 0
    strata = definition.all_strata
    if arguments.strata:
        strata = strata[:: max(1, len(strata) // arguments.strata)][: arguments.strata]
    for stratum in strata:
        rows = load_task_data(definition, stratum, ("data-dir", "embedded"), arguments.data, shots)
        chosen = chosen_indices(len(rows.rows), count, 0, name, stratum)
        task = build_task(definition, stratum, shots, [rows.rows[i] for i in chosen], rows.fewshot)
        groups = build_requests(task)
        documents += len(groups)
        instances += [instance for group in groups for instance in group]
    return instances, documents


clock = time.perf_counter


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = clock()
    result = call()
    return clock() - started, result


def run_suite(suite: str, model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Line:
    """Both sides in turn on the same requests."""
    from lm_eval.models.huggingface import HFLM

    from prunebench.evaluation.engine.engine import Engine

    instances, documents = build_instances(suite, arguments)
    kind = instances[0].request_type
    engine = Engine(model, tokenizer)
    ours = getattr(engine, "generate_until" if kind == "generate_until" else "loglikelihood")

    def theirs(batch: int, chosen: list[Any]) -> Any:
        backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        return getattr(backend, kind)(chosen, disable_tqdm=True)

    quarter = instances[: len(instances) // 4 if len(instances) >= 64 else None]  # whole documents, as the backend groups them
    batch = min(BATCH_SIZES, key=lambda size: timed(lambda: theirs(size, quarter))[0])
    our_times, harness_times = [], []
    for _ in range(arguments.rounds):
        computed = engine.tokens_computed
        seconds, answers = timed(lambda: ours([instance.args for instance in instances]))
        computed = engine.tokens_computed - computed
        our_times.append(seconds)
        seconds, expected = timed(lambda: theirs(batch, instances))
        harness_times.append(seconds)
    encoded = engine.encode([instance.args[0] for instance in instances])
    if kind == "generate_until":
        sequences = [(encoded[instance.args[0]], 1) for instance in instances]
        distinct = len({tuple(tokens) for tokens, _ in sequences})
        generated = sum(len(tokenizer(text)["input_ids"]) for text in answers.responses)
        operations = floor_operations(model, sequences, max(0, generated - distinct))
        gap = 0.0
        differing = sum(a != b for a, b in zip(answers.responses, expected, strict=True))
    else:
        wholes = engine.encode([instance.args[0] + instance.args[1] for instance in instances])
        sequences = []
        for instance in instances:
            whole = wholes[instance.args[0] + instance.args[1]]
            sequences.append((whole[:-1], len(whole) - len(encoded[instance.args[0]])))
        operations = floor_operations(model, sequences, 0)
        gap = max(abs(a[0] - b[0]) for a, b in zip(answers.responses, expected, strict=True))
        differing = sum(a[1] != b[1] for a, b in zip(answers.responses, expected, strict=True))
    floor = operations / matrix_rate(model)
    best, harness_best = min(our_times), min(harness_times)
    return Line(
        suite,
        documents,
        len(instances),
        harness_best,
        batch,
        best,
        harness_best / best,
        computed,
        floor,
        best / floor,
        gap,
        differing,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="hub id, folder or embedded name")
    parser.add_argument("--data", type=Path, default=None, help="benchmark data folder; BBH needs it")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--items", type=int, default=100, help="documents of each single task")
    parser.add_argument("--per-subject", type=int, default=25, help="MMLU documents a subject")
    parser.add_argument("--per-task", type=int, default=25, help="BBH documents a task")
    parser.add_argument("--strata", type=int, default=0, help="only so many MMLU subjects and BBH tasks; 0 for all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of this process, on a busy machine")
    parser.add_argument("--json", type=Path, default=None, help="also write the lines there")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging

    import torch

    from prunebench.models.loading import ModelSpec, load_model

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    if arguments.clock == "cpu":
        global clock
        clock = time.process_time
    loaded = load_model(ModelSpec(name=arguments.model, dtype="float32"))
    header = (
        f"{'suite':<12}{'docs':>6}{'requests':>9}{'hf s':>9}{'batch':>6}{'ours s':>9}{'ratio':>7}"
        f"{'tokens':>9}{'floor s':>9}{'x floor':>8}{'max diff':>10}{'differ':>7}"
    )
    print(header, flush=True)
    lines = []
    for suite in arguments.suites:
        line = run_suite(suite, loaded.model, loaded.tokenizer, arguments)
        lines.append(line)
        print(
            f"{line.suite:<12}{line.documents:>6}{line.requests:>9}{line.harness_seconds:>9.2f}"
            f"{line.harness_batch:>6}{line.our_seconds:>9.2f}{line.ratio:>7.2f}{line.tokens_computed:>9}"
            f"{line.floor_seconds:>9.2f}{line.over_floor:>8.2f}{line.largest_difference:>10.1e}"
            f"{line.differing_answers:>7}",
            flush=True,
        )
    print(f"geometric mean ratio {math.exp(sum(math.log(line.ratio) for line in lines) / len(lines)):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
