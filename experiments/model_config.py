"""The config and the tokenizer of a model before it is loaded; nothing is fetched for the tokenizer, no code is run."""

from __future__ import annotations

import functools
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from prunebench.experiments.model_check import EMBEDDED_SHAPES
from prunebench.models import pruned_modeling
from prunebench.models.checkpoint import check_model_folder, is_pruned_config
from prunebench.models.errors import PrunebenchError
from prunebench.models.loading import EMBEDDED_PREFIX, ModelSpec


@functools.lru_cache(maxsize=32)
def load_config(spec: ModelSpec) -> PreTrainedConfig | None:
    """The config of the model that `spec` names; None where it can't be had here."""
    if spec.name.startswith(EMBEDDED_PREFIX):
        shape = EMBEDDED_SHAPES.get(spec.name.removeprefix(EMBEDDED_PREFIX))
        return None if shape is None else AutoConfig.for_model(**shape)
    path = Path(spec.name).expanduser()
    if path.is_file():
        return None
    try:
        if not path.is_dir():
            return AutoConfig.from_pretrained(spec.name, revision=spec.revision, trust_remote_code=False)
        if is_pruned_config(settings := check_model_folder(path)):
            pruned: PreTrainedConfig = getattr(pruned_modeling, settings["architectures"][0]).config_class.from_pretrained(path)
            return pruned
        if "auto_map" in settings:  # its own code may have other defaults; what the file says counts
            return PreTrainedConfig.from_dict(settings)
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except PrunebenchError:
        raise
    except Exception:  # whatever transformers makes of a config; loading the model will say it properly
        return None


@functools.lru_cache(maxsize=32)
def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model folder, or of a hub model that was fetched before; None where it isn't at hand."""
    if spec.name.startswith(EMBEDDED_PREFIX) or Path(spec.name).expanduser().is_file():
        return None
    path = Path(spec.name).expanduser()
    try:
        where = path if path.is_dir() else spec.name
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, revision=spec.revision, local_files_only=True, trust_remote_code=False
        )
        return tokenizer
    except Exception:  # as above
        return None
