"""Sanity gates of the stages: what refuses a cell whose numbers would be false."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunebench.models.anatomy import Anatomy
from prunebench.models.checkpoint import load_pruned
from prunebench.models.errors import PrunebenchError
from prunebench.models.masks import Masks

RELOAD_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest difference of logits that a reload may make, as a share of the largest logit."""


class GateFailed(PrunebenchError):
    """A sanity gate found that a number would have been false."""


def check_masks(masks: Any, anatomy: Anatomy, method: str) -> Masks:
    """Refuses anything but valid masks, naming the method."""
    if not isinstance(masks, Masks):
        raise PrunebenchError(f"method {method} returned {type(masks).__name__} from prune; it must return Masks.")
    try:
        masks.validate(anatomy)
    except PrunebenchError as error:
        raise PrunebenchError(f"method {method} returned masks that can't be sliced: {error}") from None
    return masks


def zero_fraction(model: PreTrainedModel, anatomy: Anatomy) -> float:
    """Share of the decoder layers' projection weights that an unstructured method set to zero."""
    zeros = sum(
        int((module.weight == 0).sum())
        for layer in anatomy.layers
        for module in model.get_submodule(layer.path).modules()
        if isinstance(module, torch.nn.Linear)
    )
    return zeros / anatomy.dense_params.blocks


def masks_hash(masks: Masks) -> str:
    """SHA-256 of what the masks say; the file's own hash would differ with the order of its header."""
    digest = hashlib.sha256()
    for name, mask in sorted(masks.tensors().items()):
        digest.update(f"{name} {len(mask)} ".encode() + mask.contiguous().numpy().tobytes())
    return digest.hexdigest()


def weight_hashes(model: PreTrainedModel) -> dict[str, tuple[torch.Size, int]]:
    """A hash of every parameter and buffer, to find what a method changed without keeping a second copy."""
    return {name: (tensor.shape, _hash_tensor(tensor)) for name, tensor in model.state_dict().items()}


def _hash_tensor(tensor: Tensor) -> int:
    raw = tensor.detach().cpu().contiguous().view(-1)
    data = raw.view(torch.uint8).numpy().data
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big")


def changed_weights(
    model: PreTrainedModel, before: dict[str, tuple[torch.Size, int]], may_appear: frozenset[str], method: str
) -> dict[str, Tensor]:
    """The tensors that a method changed in place, and those of `may_appear` (output biases) that it added.

    Raises:
        PrunebenchError: a shape changed, another tensor appeared or vanished, or a value is not a number.
    """
    after = model.state_dict()
    if extra := sorted((after.keys() ^ before.keys()) - (may_appear & after.keys())):
        raise PrunebenchError(f"method {method} left {extra[0]!r} added or removed; it may change values of weights, not their set.")
    changed: dict[str, Tensor] = {}
    stored: set[int] = set()  # tied tensors (an embedding and its head) are one, under the first of their names
    for name, tensor in after.items():
        shape, digest = before.get(name, (tensor.shape, None))
        if tensor.shape != shape:
            shapes_text = f"from {tuple(shape)} to {tuple(tensor.shape)}"
            raise PrunebenchError(f"method {method} changed the shape of {name} {shapes_text}; cutting is the framework's part.")
        if _hash_tensor(tensor) != digest:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise PrunebenchError(f"method {method} left NaN or infinite values in {name}.")
            if tensor.data_ptr() not in stored:
                changed[name] = tensor.detach().cpu()
            stored.add(tensor.data_ptr())
    return changed


def probe_reload(model: PreTrainedModel, checkpoint: Path) -> None:
    """Refuses a checkpoint whose logits differ from those of the model in memory."""
    reloaded, _ = load_pruned(checkpoint)
    reloaded = reloaded.to(model.device)  # type: ignore[arg-type]
    tokens = torch.arange(3, 35, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]  # (1, 32)
    with torch.no_grad():
        expected, found = model(tokens).logits.float(), reloaded(tokens).logits.float()
    scale = expected.abs().max().item()
    difference = (expected - found).abs().max().item()
    if not math.isfinite(scale):
        raise GateFailed("the sliced model gives logits that are not numbers.")
    if difference > RELOAD_TOLERANCE[model.dtype] * max(scale, 1e-6):
        raise GateFailed(f"the checkpoint, reloaded, gives other logits than the model in memory (by {difference:.2e} of {scale:.2e}).")
