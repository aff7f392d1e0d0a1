"""Asks the hub about data sets without fetching them, and whether it may be asked at all."""

from __future__ import annotations

import os
from functools import lru_cache

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def offline_variable() -> str | None:
    """The environment variable that says not to use the hub; None where none does."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")), None)


@lru_cache(maxsize=64)
def dataset_problem(repository: str) -> str | None:
    """Why the hub doesn't give a data set (no such one, not allowed, no network), as the name of its client's exception.

    None where it does. Asked once a process; no rows are fetched.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        if api.dataset_info(repository, timeout=10).gated:
            api.auth_check(repository, repo_type="dataset")
    except Exception as error:  # the hub's client raises many kinds; the name says which
        return type(error).__name__
    return None
