"""The stages of one cell: prune -> slice -> recover -> evaluate -> efficiency.

Each stage reads the artifacts of those before it, writes its own into a scratch folder and returns its numbers; the
caller makes it atomic and skips it when nothing changed. A stage keeps its model in memory for the next one, but what is
evaluated is always the checkpoint, reloaded from disk.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunebench.experiments.cell import CellConfig, CellProtocol
from prunebench.experiments.cell_folder import CellFolder
from prunebench.experiments.checks.gates import (
    GateFailed,
    changed_weights,
    check_masks,
    masks_hash,
    probe_reload,
    weight_hashes,
    zero_fraction,
)
from prunebench.experiments.checks.methods import support_of
from prunebench.experiments.hashing import seed_for, set_global_seeds
from prunebench.experiments.job import Job
from prunebench.experiments.results import Counts, Evaluated, Measured, Pruned, Recovered, Size, Sliced
from prunebench.leaderboard.record import LayerShape
from prunebench.methods.data import PruningData, build_pruning_data
from prunebench.methods.pruner import Run
from prunebench.methods.registry import get_pruner, get_recovery
from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.budget import Budget
from prunebench.models.checkpoint import load_pruned, save_pruned, tensor_bytes
from prunebench.models.errors import BadInput, PrunebenchError, UnsupportedModel
from prunebench.models.loading import LoadedModel, load_model, resolve_device
from prunebench.models.masks import Masks
from prunebench.models.output_bias import load_changed_weights, output_bias_names
from prunebench.models.slice import slice_model

MASKS_FILE = "masks.safetensors"
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINT = "checkpoint"
RECOVERED = "recovered"
CURVES_FILE = "curves.jsonl"

Progress = Callable[[str, int, int], None]


class ModelNotLoaded(BadInput):
    """The model of the cell can't be loaded: the user's input, not the cell's failure."""


class Unsupported(PrunebenchError):
    """The method says that it can't prune this model."""


@dataclass
class Work:
    """One cell at work: where it writes, whom it tells, and the models it still holds."""

    job: Job
    folder: CellFolder
    progress: Progress
    dense: LoadedModel | None = None
    pruned: PreTrainedModel | None = None
    to_evaluate: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> CellConfig:
        return self.job.cell

    def load_dense(self) -> LoadedModel:
        if self.dense is None:
            self.progress("loading the model", 0, 1)
            try:
                loaded = load_model(self.job.model)
                if self.job.until == "record":
                    _check_form(loaded.tokenizer, self.cell)
            except BadInput as error:
                raise ModelNotLoaded(str(error)) from None
            self.dense, self.identity = loaded, loaded.identity
            self.progress("loading the model", 1, 1)
        return self.dense

    def forget_models(self) -> None:
        self.dense = self.pruned = self.to_evaluate = None
        gc.collect()


# --- prune -----------------------------------------------------------------------------------------------------------


def prune(work: Work, scratch: Path) -> Pruned:
    """Lets the method choose what stays; writes the masks and the weights that it changed."""
    cell = work.cell
    assert cell.sparsity is not None  # dense cells have no prune stage
    assert cell.calibration is not None
    loaded = work.load_dense()
    model, anatomy = loaded.model, Anatomy.from_model(loaded.model)
    pruner_class = get_pruner(cell.method)
    pruner = pruner_class(pruner_class.Config.model_validate(cell.method_config))
    support = support_of(pruner, anatomy)
    if not support.ok:
        work.forget_models()
        raise Unsupported(support.reason)
    budget = Budget(cell.sparsity, "blocks" if cell.basis == "blocks" else "total")
    data = pruning_data(work, loaded.tokenizer, "calibration", needed=pruner_class.needs_calibration)
    data.check_fits(model)
    curves = Curves(work.folder.work("prune") / CURVES_FILE)
    method_folder = work.folder.work("prune") / "method"
    method_folder.mkdir(exist_ok=True)
    before = weight_hashes(model)
    seed = seed_for(cell.seed, "prune")
    set_global_seeds(seed)
    run = Run(seed=seed, device=model.device, folder=method_folder, progress=work.progress, log_metrics=curves.log)
    masks = pruner.prune(model, budget, data, run)
    changed = changed_weights(model, before, output_bias_names(anatomy), pruner_class.name)
    masks = check_masks(masks, anatomy, pruner_class.name)
    kept = masks.count(Anatomy.from_model(model))  # read again: a method may have added output biases
    dense = anatomy.dense_params
    if pruner_class.structured:  # zeroed weights take no parameter away
        budget.check(dense, kept)
    masks.save(scratch / MASKS_FILE)
    if changed:
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, scratch / WEIGHTS_FILE)
    return Pruned(
        identity=loaded.identity,
        size=Size(
            dense=Counts(total=dense.total, blocks=dense.blocks),
            kept=Counts(total=kept.total, blocks=kept.blocks),
            shapes=shapes(anatomy, masks),
            hidden=(int(masks.hidden.sum()), anatomy.hidden_size),
        ),
        masks_sha256=masks_hash(masks),
        curves=curves.read(),
        data=data_provenance(data),
        changed_weights=len(changed),
        unstructured_zeros=None if pruner_class.structured else zero_fraction(model, anatomy),
    )


def pruning_data(work: Work, tokenizer: PreTrainedTokenizerBase, purpose: str, *, needed: bool) -> PruningData:
    """What a method or a recovery may look at; the same samples for every method of one seed."""
    if not needed:
        return PruningData.none()
    data_dir = Path(work.job.data_dir) if work.job.data_dir else None
    assert work.cell.calibration is not None
    return build_pruning_data(work.cell.calibration, tokenizer, seed_for(work.cell.seed, purpose), data_dir)


def data_provenance(data: PruningData) -> tuple[dict[str, Any], ...]:
    """What the calibration data are and the hash of their tokens."""
    if not len(data.calibration):
        return ()
    return ({"purpose": "calibration", "source": data.description, "sha256": data.sha256},)


class Curves:
    """Training curves as JSON lines that survive a kill; a step logged twice (before and after a kill) counts once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise PrunebenchError(f"{name} is {value} at step {step}; the cell stops here.")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), **{k: float(v) for k, v in values.items()}}) + "\n")

    def read(self) -> dict[str, list[tuple[float, float]]]:
        points: dict[str, dict[int, float]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that a kill cut
                    continue
                step = row.pop("step")
                for name, value in row.items():
                    points.setdefault(name, {})[step] = value
        return {name: [(step, by_step[step]) for step in sorted(by_step)] for name, by_step in sorted(points.items())}


def shapes(anatomy: Anatomy, masks: Masks | None) -> tuple[LayerShape, ...]:
    """Per layer what stays and what was there."""
    rows = []
    for layer in anatomy.layers:
        heads, groups, channels = anatomy.layer_sizes(layer.index)
        kept = (
            (heads, groups, channels)
            if masks is None
            else tuple(int(mask[layer.index].sum()) for mask in (masks.q_heads, masks.kv_groups, masks.ffn))
        )
        rows.append(
            LayerShape(
                layer=layer.index,
                kv_groups_kept=kept[1],
                kv_groups_total=groups,
                q_heads_kept=kept[0],
                q_heads_total=heads,
                ffn_kept=kept[2],
                ffn_total=channels,
                attn=kept[1] > 0,
                mlp=kept[2] > 0,
            )
        )
    return tuple(rows)


# --- slice -----------------------------------------------------------------------------------------------------------


def slice_(work: Work, scratch: Path, pruned: Pruned) -> Sliced:
    """Makes the tensors smaller and writes the checkpoint; proves the parameter count and that a reload changes nothing."""
    loaded = work.load_dense()
    masks = Masks.load(work.folder.path / MASKS_FILE)
    if (work.folder.path / WEIGHTS_FILE).exists() and pruned.changed_weights:
        load_changed_weights(loaded.model, Anatomy.from_model(loaded.model), load_file(work.folder.path / WEIGHTS_FILE))
    work.progress("slicing", 0, 3)
    sliced = slice_model(loaded.model, masks)
    counted, kept = count_params(sliced), pruned.size.kept
    if (counted.total, counted.blocks) != (kept.total, kept.blocks):
        raise GateFailed(
            f"the sliced model has {counted.total} parameters ({counted.blocks} in blocks), the masks say {kept.total} ({kept.blocks})."
        )
    work.progress("slicing", 1, 3)
    provenance = {"model": loaded.identity, "pruning": work.cell.prune_inputs(), "params": kept.model_dump()}
    save_pruned(sliced, loaded.tokenizer, scratch / CHECKPOINT, provenance)
    work.dense = None
    work.progress("slicing", 2, 3)
    probe_reload(sliced, scratch / CHECKPOINT)
    work.pruned = sliced
    work.progress("slicing", 3, 3)
    return Sliced(disk_bytes=tensor_bytes(sliced))


# --- recover ---------------------------------------------------------------------------------------------------------


def recover(work: Work, scratch: Path) -> Recovered:
    """Trains the sliced checkpoint, the same way for every method, and writes the result beside it."""
    cell = work.cell
    model, tokenizer = load_checkpoint(work, CHECKPOINT)
    curves = Curves(work.folder.work("recover") / CURVES_FILE)
    method_folder = work.folder.work("recover") / "method"
    method_folder.mkdir(exist_ok=True)
    recovery = get_recovery(cell.recovery)()
    data = pruning_data(work, tokenizer, "recover", needed=recovery.trains)
    seed = seed_for(cell.seed, "recover")
    set_global_seeds(seed)
    run = Run(seed=seed, device=model.device, folder=method_folder, progress=work.progress, log_metrics=curves.log)
    facts = without_nan(recovery.recover(model, cell.recovery_config, data, run))
    if not isinstance(facts, dict) or not isinstance(facts.get("tokens"), int):
        raise PrunebenchError(
            f"recovery {cell.recovery} returned {facts!r}; it must return a mapping with its training tokens as 'tokens'."
        )
    save_pruned(model, tokenizer, scratch / RECOVERED, {"recovery": cell.recover_inputs()})
    probe_reload(model, scratch / RECOVERED)
    work.to_evaluate = None
    return Recovered(
        tokens=facts.pop("tokens"), data=facts.pop("data", ()), facts=facts, curves=curves.read(), disk_bytes=tensor_bytes(model)
    )


def load_checkpoint(work: Work, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint of this cell, read from disk onto the device of the job."""
    work.forget_models()
    spec = work.job.model
    model, tokenizer = load_pruned(work.folder.path / name, attn_implementation=spec.attn_implementation, device_map=spec.device_map)
    assert tokenizer is not None  # asked for by default
    if spec.device_map is None:
        model = model.to(resolve_device(spec.device))  # type: ignore[arg-type]
    return model, tokenizer


# --- evaluate and efficiency -----------------------------------------------------------------------------------------


def model_to_evaluate(work: Work) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The checkpoint from disk, or the dense model; kept for the stage after."""
    if work.to_evaluate is None:
        if work.cell.is_dense:
            loaded = work.load_dense()
            work.to_evaluate = (loaded.model, loaded.tokenizer)
        else:
            work.progress("loading the checkpoint", 0, 1)
            work.to_evaluate = load_checkpoint(work, RECOVERED if work.cell.recovery != "none" else CHECKPOINT)
            work.progress("loading the checkpoint", 1, 1)
    return work.to_evaluate


def evaluate(work: Work, scratch: Path) -> Evaluated:
    """Scores every protocol of the cell; per-document outcomes go to samples/."""
    from prunebench import evaluation

    model, tokenizer = model_to_evaluate(work)
    results = []
    scores_folder = work.folder.work("evaluate")
    for same in _alike(work.cell.protocols):
        set_global_seeds(same[0].seed)
        results += evaluation.evaluate(
            model,
            tokenizer,
            [evaluation.ProtocolRequest.model_validate(one.model_dump(include={"name", "limit", "sources"})) for one in same],
            data_dir=Path(work.job.data_dir) if work.job.data_dir else None,
            seed=same[0].seed,
            prompt=same[0].prompt,
            bos=same[0].bos,
            chat_template=same[0].chat_template,
            system=same[0].system,
            out_dir=scores_folder,
            token_budget=work.job.token_budget,
            progress=work.progress,
        )
    scores = [without_nan(result.model_dump(mode="python")) for result in results]
    for score in scores:
        for task in score["tasks"]:
            task["notes"] = [note for note in task["notes"] if not note.endswith(evaluation.KEPT)]  # of this cell's own earlier attempt
            if task["value"] is None:
                raise GateFailed(f"{task['metric']} of task {task['task']} (protocol {score['protocol']}) is not a number.")
    if (scores_folder / "samples").is_dir():
        (scores_folder / "samples").rename(scratch / "samples")
    return Evaluated(
        scores=json.loads(json.dumps(scores, default=str, allow_nan=False)),
        identity=work.identity,
        size=dense_size(model) if work.cell.is_dense else None,
        disk_bytes=tensor_bytes(model),
    )


def dense_size(model: PreTrainedModel) -> Size:
    """Parameters and shapes of an unpruned model; only how many parameters there are where the anatomy can't read it."""
    counted = count_params(model)
    try:
        anatomy = Anatomy.from_model(model)
    except UnsupportedModel:  # it can be evaluated all the same
        whole = Counts(total=counted.total, blocks=None)
        return Size(dense=whole, kept=whole)
    whole, width = Counts(total=counted.total, blocks=counted.blocks), anatomy.hidden_size
    return Size(dense=whole, kept=whole, shapes=shapes(anatomy, None), hidden=(width, width))


def _check_form(tokenizer: PreTrainedTokenizerBase, cell: CellConfig) -> None:
    """Refuses options of the evaluation that this tokenizer can't follow, before anything is pruned."""
    from prunebench import evaluation

    for same in _alike(cell.protocols):
        evaluation.check_form(tokenizer, same[0].bos, same[0].chat_template, same[0].system)


def _alike(protocols: tuple[CellProtocol, ...]) -> list[list[CellProtocol]]:
    """Neighbours that put their requests to the model in the same way: one call reads the weights and checks the model once."""
    own = {"name", "version", "limit", "sources"}
    return [list(group) for _, group in itertools.groupby(protocols, lambda one: one.model_dump(exclude=own))]


def without_nan(value: Any) -> Any:
    """NaN and infinity as None: a stamp is valid JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value


def efficiency(work: Work, scratch: Path) -> Measured:
    """Measures speed and memory of what was evaluated."""
    from prunebench import evaluation

    model, tokenizer = model_to_evaluate(work)
    settings = work.cell.efficiency
    measured = evaluation.measure_efficiency(
        model,
        tokenizer,
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        repeats=settings.repeats,
        progress=work.progress,
    )
    return Measured(efficiency=without_nan(measured.model_dump(mode="json")))
