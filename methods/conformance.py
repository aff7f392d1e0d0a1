"""The conformance kit: the promises that every pruner keeps, built-in or plugin, checked on tiny models.

`check_pruner` runs the promises on every architecture family and returns one finding for each; `tests/conformance` runs
it for the built-ins and `run_all.py conformance FILE` for a plugin.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.methods.data import PruningData
from prunebench.methods.pruner import Pruner, PrunerConfig, Run, Support
from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.budget import Budget
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.errors import PrunebenchError, deed
from prunebench.models.files import one_line
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.masks import Masks
from prunebench.models.slice import slice_model
from prunebench.models.tiny import FAMILIES, VOCAB_SIZE, random_tokens, tiny_model

SPARSITIES = (0.2, 0.4)
LOGIT_TOLERANCE = 1e-4  # relative to the largest logit, float32
TIMEOUT_SECONDS = 120.0  # a tiny model takes any method milliseconds to seconds


@dataclass(frozen=True)
class Finding:
    """One promise checked on one architecture family."""

    family: str
    promise: str
    status: str  # "kept", "broken" or "skipped"
    message: str = ""


class BrokenPromise(Exception):
    """A pruner broke the promise that is being checked; the message says how."""


def check_pruner(
    pruner: type[Pruner],
    config: PrunerConfig | None = None,
    families: tuple[str, ...] = tuple(FAMILIES),
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[Finding]:
    """Runs the kit.

    Args:
        config: hyper-parameters to check with; None for the method's `quick_config()`.
        families: keys of `models.tiny.FAMILIES`.
        timeout: seconds after which one call of `prune` counts as hanging.
    """
    findings: list[Finding] = []
    try:
        config = pruner.quick_config() if config is None else config
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way, SystemExit included
        return [
            Finding(family, "has settings to check with", "broken", f"quick_config() {deed(error)}: {one_line(error)}")
            for family in families
        ]
    for family in families:
        findings += _check_family(pruner, config, family, timeout)
    return findings


def _check_family(pruner: type[Pruner], config: PrunerConfig | None, family: str, timeout: float) -> Iterator[Finding]:
    dense = tiny_model(family)
    anatomy = Anatomy.from_model(dense)
    try:
        support = pruner(config).supports(anatomy)
        is_answer = isinstance(support, Support)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may fail in any way, SystemExit included
        yield Finding(family, "says what it supports", "broken", f"supports() {deed(error)}: {one_line(error)}")
        return
    if not is_answer:
        yield Finding(family, "says what it supports", "broken", f"supports() returned {type(support).__name__}; it must return a Support")
        return
    if not support.ok:
        status = "skipped" if support.reason.strip() else "broken"
        yield Finding(family, "says what it supports", status, support.reason or "supports() says no without a reason")
        return
    yield Finding(family, "says what it supports", "kept")
    for sparsity in SPARSITIES:
        promise = f"prunes at sparsity {sparsity}"
        try:
            for promise, check in _promises(pruner, config, family, Budget(sparsity), timeout):
                check()
                yield Finding(family, f"{promise} (sparsity {sparsity})", "kept")
        except BrokenPromise as error:
            yield Finding(family, f"{promise} (sparsity {sparsity})", "broken", str(error))


def _promises(
    pruner: type[Pruner], config: PrunerConfig | None, family: str, budget: Budget, timeout: float
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The promises in order; each is a name and a check that raises BrokenPromise. Later ones build on earlier ones."""
    state: dict[str, Any] = {}

    def prune_once(seed: int = 0) -> tuple[PreTrainedModel, Masks]:
        model = tiny_model(family)
        return model, _call(pruner, config, model, budget, seed, timeout)

    def returns_masks() -> None:
        before = {name: parameter.shape for name, parameter in tiny_model(family).named_parameters()}
        around = _global_state()
        state["model"], masks = prune_once()
        state["changed globals"] = [name for name, value in _global_state().items() if not _equal(value, around[name])]
        if not isinstance(masks, Masks):
            raise BrokenPromise(f"prune() returned {type(masks).__name__}; it must return models.masks.Masks")
        after = {name: parameter.shape for name, parameter in state["model"].named_parameters()}
        changed = sorted(name for name in before if before[name] != after.get(name))
        if changed:
            raise BrokenPromise(f"prune() changed the shape of {changed[0]}; the framework slices, a method only chooses")
        if any(not torch.isfinite(parameter).all() for parameter in state["model"].parameters()):
            raise BrokenPromise("prune() left weights that are not finite")
        state["masks"] = masks

    def masks_are_valid() -> None:
        try:
            state["masks"].validate(Anatomy.from_model(state["model"]))
        except PrunebenchError as error:
            raise BrokenPromise(f"its masks can't be sliced: {error}") from error

    def hits_the_budget() -> None:
        anatomy = Anatomy.from_model(tiny_model(family))
        try:
            budget.check(anatomy.dense_params, state["masks"].count(Anatomy.from_model(state["model"])))
        except PrunebenchError as error:
            raise BrokenPromise(str(error)) from error

    def masked_equals_sliced() -> None:
        model, masks = state["model"], state["masks"]
        tokens = random_tokens()
        with torch.no_grad():
            with apply_masks(model, Anatomy.from_model(model), masks):
                masked = model(tokens).logits
            state["sliced"] = slice_model(model, masks)
            state["logits"] = state["sliced"](tokens).logits
        _same_logits(masked, state["logits"], "masked and sliced model")
        if count_params(state["sliced"]) != masks.count(Anatomy.from_model(model)):
            raise BrokenPromise("the sliced model has another parameter count than its masks promise")

    def reload_equals_memory() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pruned"
            save_pruned(state["sliced"], None, path, {})
            reloaded = load_pruned(path, with_tokenizer=False)[0]
        with torch.no_grad():
            _same_logits(state["logits"], reloaded(random_tokens()).logits, "saved and reloaded model")

    def is_deterministic() -> None:
        model, masks = prune_once()
        if masks != state["masks"]:
            raise BrokenPromise("two runs with the same seed chose different masks")
        for (name, first), (_, second) in zip(state["model"].named_parameters(), model.named_parameters(), strict=True):
            if not torch.equal(first, second):
                raise BrokenPromise(f"two runs with the same seed left different weights in {name}")

    def leaves_global_state_alone() -> None:
        if changed := state["changed globals"]:  # of the first call: later ones find what it set
            raise BrokenPromise(f"prune() changed the {changed[0]}; draw from run.generator() and restore what you set")

    yield "returns masks and leaves shapes alone", returns_masks
    yield "leaves global state alone", leaves_global_state_alone
    yield "its masks can be sliced", masks_are_valid
    if pruner.structured:
        yield "hits the budget within 0.5 %", hits_the_budget
    yield "masked equals sliced", masked_equals_sliced
    yield "reloaded equals in memory", reload_equals_memory
    yield "is deterministic for a seed", is_deterministic


def _call(pruner: type[Pruner], config: PrunerConfig | None, model: PreTrainedModel, budget: Budget, seed: int, timeout: float) -> Any:
    """Calls `prune` in a thread, so that a method that hangs is a finding and not a hanging kit."""
    outcome: dict[str, Any] = {}
    tokens = random_tokens(8, 32, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(seed=seed, device=torch.device("cpu"), folder=Path(folder))
        data = PruningData(tokens.clamp(max=VOCAB_SIZE - 1), "random tokens")

        def work() -> None:
            try:
                outcome["masks"] = pruner(config).prune(model, budget, data, run)
            except BaseException as error:  # a plugin may fail in any way, SystemExit included
                outcome["error"] = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            raise BrokenPromise(f"prune() did not return within {timeout:.0f} s on a model of a few thousand parameters")
    if "error" in outcome:
        raise BrokenPromise(f"prune() {deed(outcome['error'])}: {one_line(outcome['error'])}") from outcome["error"]
    return outcome["masks"]


def _same_logits(left: Tensor, right: Tensor, what: str) -> None:
    difference = float((left - right).abs().max() / left.abs().max())
    if not difference <= LOGIT_TOLERANCE:
        raise BrokenPromise(f"{what} differ by {difference:.1e} of the largest logit")


def _global_state() -> dict[str, Any]:
    return {
        "global torch random state": torch.get_rng_state(),
        "global numpy random state": repr(numpy.random.get_state()),
        "global python random state": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic-algorithms switch": torch.are_deterministic_algorithms_enabled(),
    }


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, numpy.ndarray):
        return bool(numpy.array_equal(left, right))
    return bool(left == right)
