"""Tells one model from another, so that kept outcomes are never taken for another model's."""

from __future__ import annotations

import hashlib
from typing import Any


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """Hash of the model's class, shapes and a sample of every parameter, and of the tokenizer's behaviour."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.state_dict().items():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    probe = tokenizer("The quick brown fox, 123!\n\n A.")["input_ids"]
    digest.update(f"{len(tokenizer)}{probe}{tokenizer.bos_token_id}{tokenizer.eos_token_id}".encode())
    return digest.hexdigest()
