"""In which precision the matrix products of training are done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

ComputeDtype = Literal["model", "bfloat16"]

DESCRIPTION = "of training's matrix products; 'bfloat16' leaves all weights as they are, and halves the time where there is hardware for it"


def computing_in(dtype: ComputeDtype, device: torch.device) -> AbstractContextManager[object]:
    """A context for forward passes; 'model' changes nothing. Weights, residual stream, norms, gates and losses keep their dtype."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()
