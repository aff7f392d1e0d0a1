"""Prunes a tiny model of the same class and config first: what can't be sliced, saved or reloaded is found before any work."""

from __future__ import annotations

import contextlib
import errno
import functools
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import logging as transformers_logging

from prunebench.experiments.checks.methods import may_prune, one_of_each
from prunebench.experiments.checks.removals import ALL_KINDS, Kind, removed_kinds
from prunebench.experiments.checks.tiny_copy import VOCABULARY, tiny_copy
from prunebench.experiments.plan import PlannedCell
from prunebench.models.anatomy import Anatomy, count_params
from prunebench.models.checkpoint import load_pruned, save_pruned
from prunebench.models.errors import BadInput, UnsupportedModel, is_out_of_memory
from prunebench.models.files import one_line
from prunebench.models.gating.soft_masks import apply_masks
from prunebench.models.loading import ModelSpec, check_loads
from prunebench.models.masks import Masks
from prunebench.models.output_bias import ensure_output_bias, output_bias_names
from prunebench.models.slice import slice_model

TOKENS = 24
NEW_TOKENS = 4
TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit, in float32."""


class CantBePruned(UnsupportedModel):
    """A pruned copy of the model would not be the same model.

    `kind`: what was removed; None where nothing needs to be.
    """

    def __init__(self, sentence: str, kind: Kind | None = None) -> None:
        super().__init__(sentence)
        self.kind = kind


def rehearse_cells(cells: Sequence[PlannedCell]) -> None:
    """Rehearses every model that a method is to prune, with what the methods of the grid remove; see `rehearse`.

    Raises:
        UnsupportedModel, BadInput: as `rehearse`; names the methods that remove what can't be removed.
    """
    wanted = [cell for cell in one_of_each(cells) if may_prune(cell)]
    for model in dict.fromkeys(cell.model for cell in wanted):
        removes: dict[str, set[Kind]] = {}
        for cell in wanted:
            if cell.model == model:
                removes.setdefault(cell.config.method, set()).update(removed_kinds(cell.config.method, cell.config.method_config))
        try:
            rehearse(model, frozenset().union(*removes.values()))
        except CantBePruned as error:
            methods = [method for method, kinds in removes.items() if error.kind in kinds]
            if len(methods) in (0, len(removes)):
                raise
            remove = "removes" if len(methods) == 1 else "remove"
            raise UnsupportedModel(f"{str(error).rstrip('.')}; leave out {' and '.join(methods)}, which {remove} these.") from error


def rehearse(spec: ModelSpec, kinds: frozenset[Kind] = ALL_KINDS) -> None:
    """Refuses a model of which a pruned copy would not be the same model; nothing happens where its files aren't here yet.

    A tiny random model of its class and config goes the whole road: masked, sliced, saved, loaded, and run with a cache.
    A folder that prunebench sliced went it when it was made.

    Args:
        kinds: what may be removed; without any, the model is rebuilt and saved whole.

    Raises:
        UnsupportedModel: the anatomy can't read it, or slicing, saving or reloading changes what it computes.
        BadInput: it can't be loaded at all, or the temporary folder can't be written.
    """
    empty = check_loads(spec)
    if empty is not None and not hasattr(empty.config, "pruning"):
        try:
            _rehearse_config(empty.config.to_json_string(), spec, kinds)
        except _Failure as failure:
            name = f"model {spec.name} ({type(empty).__name__})"
            raise CantBePruned(f"{name} can't be pruned, only evaluated: {failure}.", failure.kind) from failure


class _Failure(Exception):
    """Why a model can't be pruned, as the end of a sentence, and what was removed."""

    def __init__(self, text: str, kind: Kind | None = None) -> None:
        super().__init__(text)
        self.kind = kind


@functools.lru_cache(maxsize=64)
def _rehearse_config(config_text: str, spec: ModelSpec, kinds: frozenset[Kind]) -> None:
    """Remembered by config."""
    empty = check_loads(spec)
    assert empty is not None  # its config is at hand
    with _quiet():
        try:
            Anatomy.from_model(empty)
            model = tiny_copy(empty, _tokens())
            anatomy = Anatomy.from_model(model)
        except UnsupportedModel as error:
            raise _Failure(str(error).rstrip(".")) from error
        road = _Road(model, anatomy, has_own_code=not type(empty).__module__.startswith("transformers."))
        units = kinds - {Kind.SUBLAYERS, Kind.WIDTH}
        for removed in dict.fromkeys((units, kinds)):
            _go(road, removed)


def _go(road: _Road, kinds: frozenset[Kind]) -> None:
    """Goes the road with `kinds` removed; a failure names the first kind that fails alone, where one does."""
    try:
        road.go(kinds)
    except _Failure as failure:
        for kind in (None, *(kind for kind in Kind if kind in kinds)):
            try:
                road.go(frozenset() if kind is None else frozenset({kind}))
            except _Failure as alone:
                raise _Failure(f"{'' if kind is None else kind.in_words} {alone}".strip(), kind) from failure
        raise _Failure(f"{' and '.join(kind.in_words for kind in Kind if kind in kinds)} {failure}") from failure


@dataclass(frozen=True)
class _Road:
    """The road from a model to its pruned copy on disk.

    has_own_code: the model's class came with the checkpoint.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    has_own_code: bool

    @torch.no_grad()
    def go(self, kinds: frozenset[Kind]) -> None:
        """Masks, slices, saves, reloads and runs the model.

        Raises:
            _Failure: something on the way fails, or changes what the model computes.
        """
        masks = uneven_masks(self.anatomy, kinds)
        with _output_biases(self.model, self.anatomy, present=Kind.BIASES in kinds):
            anatomy = Anatomy.from_model(self.model)
            with self._step("be masked"), apply_masks(self.model, anatomy, masks):
                expected, cached = _logits(self.model), _cached_logits(self.model)
            with self._step("be rebuilt"):
                sliced = slice_model(self.model, masks)
            counted, promised = count_params(sliced), masks.count(anatomy)
        if counted != promised:
            raise _Failure(f"it has {counted.total} parameters ({counted.blocks} in blocks), not {promised.total} ({promised.blocks})")
        with self._step("run once it is sliced"):
            _compare(_logits(sliced), expected, "it gives other logits once it is sliced")
        with _temporary_folder() as folder:
            with self._step("be saved"):
                save_pruned(sliced, None, folder / "pruned", {})
            with self._step("be loaded again"):
                reloaded, _ = load_pruned(folder / "pruned", with_tokenizer=False)
        with self._step("run once it is loaded again"):
            _compare(_logits(reloaded), expected, "it gives other logits once it is saved and loaded again")
            _compare(_cached_logits(reloaded), cached, "it generates other text, token by token with a cache, once it is sliced")

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Turns whatever a model class does when its parts are missing into a failure that says what the model can't do."""
        try:
            yield
        except _Failure:
            raise
        except Exception as error:
            _refuse_temporary_folder(error)
            if is_out_of_memory(error):
                raise
            if self.has_own_code:
                raise _Failure(f"class {type(self.model).__name__} comes with the checkpoint, and its pruned copy can't {what}") from error
            reason = one_line(error).rpartition("can't be loaded: ")[2]  # not the name of a folder that is gone
            raise _Failure(f"it can't {what} ({reason.rstrip('.')})") from error


def uneven_masks(anatomy: Anatomy, kinds: frozenset[Kind]) -> Masks:
    """Masks that remove some of each of `kinds`, and not the same number in neighbouring layers."""
    generator = torch.Generator().manual_seed(0)

    def without(count: int, removed: int) -> Tensor:
        mask = torch.ones(count, dtype=torch.bool)
        mask[torch.randperm(count, generator=generator)[: min(removed, count - 1)]] = False
        return mask

    groups, queries, ffn = [], [], []
    for layer in anatomy.layers:
        i = layer.index
        _, num_groups, width = anatomy.layer_sizes(i)
        per_group = layer.attention.q_heads_per_group if layer.attention else 1
        fewer_heads = Kind.HEADS in kinds
        groups.append(without(num_groups, fewer_heads * ((i + 1) % 2)))
        fewer_queries = fewer_heads * ((i + (num_groups == 1)) % 3)
        queries.append(torch.cat([without(per_group, fewer_queries) for _ in range(num_groups)]))
        ffn.append(without(width, (Kind.CHANNELS in kinds) * (width // 4 + 1 + i % 3)))
    attn, mlp = torch.ones(len(ffn), dtype=torch.bool), torch.ones(len(ffn), dtype=torch.bool)
    if Kind.SUBLAYERS in kinds:
        attn[0] = False  # where the length of a cache is read
        mlp[1 % len(ffn)] = False
        if len(ffn) > 3:
            attn[3] = mlp[3] = False
    hidden = without(anatomy.hidden_size, (Kind.WIDTH in kinds) * (anatomy.hidden_size // 3))
    return Masks.of(anatomy, kv_groups=groups, q_heads=queries, ffn=ffn, hidden=hidden, attn=attn, mlp=mlp)


# --- running and comparing -------------------------------------------------------------------------------------------


def _tokens() -> Tensor:
    return torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(0))  # (1, TOKENS)


def _logits(model: PreTrainedModel) -> Tensor:
    runnable: Any = model
    found: Tensor = runnable(input_ids=_tokens() % model.config.vocab_size, use_cache=False).logits
    return found


def _cached_logits(model: PreTrainedModel) -> Tensor:
    """Of the last tokens, read one by one behind a cache, as text is generated."""
    runnable: Any = model
    tokens = _tokens() % model.config.vocab_size
    output = runnable(input_ids=tokens[:, :-NEW_TOKENS], use_cache=True)
    parts: list[Tensor] = []
    for place in range(TOKENS - NEW_TOKENS, TOKENS):
        output = runnable(input_ids=tokens[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
        parts.append(output.logits)
    return torch.cat(parts, 1)  # (1, NEW_TOKENS, vocabulary)


def _compare(found: Tensor, expected: Tensor, what: str) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise _Failure(f"{what} (by {difference:.2g} of the largest)")


@contextlib.contextmanager
def _output_biases(model: PreTrainedModel, anatomy: Anatomy, *, present: bool) -> Iterator[None]:
    """Biases on the output projections that have none, as a method may add them, for as long as a block lasts."""
    added: list[Any] = []
    for name in sorted(output_bias_names(anatomy)) if present else ():
        path = name.removesuffix(".bias")
        projection = model.get_submodule(path)
        if projection.bias is None:
            ensure_output_bias(model, path).normal_(generator=torch.Generator().manual_seed(0))
            added.append(projection)
    try:
        yield
    finally:
        for projection in added:
            projection.bias = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers has to say of a config with few layers and words."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="prunebench-rehearsal-")
    except OSError as error:
        raise BadInput(f"no temporary folder can be written ({error.strerror or error}); set TMPDIR to one that can.") from None
    with folder as name:
        yield Path(name)


def _refuse_temporary_folder(error: Exception) -> None:
    """Raises BadInput where it is the temporary folder that failed, not the model."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES) or "os error 28" in str(error):
        raise BadInput(f"the temporary folder {tempfile.gettempdir()} is full or can't be written; set TMPDIR to one that can.") from None
