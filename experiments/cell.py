"""One cell: its resolved config, its id (the hash of that config) and what its name is on the screen."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import Field

from prunebench.experiments.config import EfficiencySettings, Part
from prunebench.experiments.hashing import short_id
from prunebench.methods.data import CalibrationConfig
from prunebench.models.special_tokens import Bos

CELL_FORMAT = 2
"""Counted up when the meaning of a cell changes, so that old records are not taken for new ones."""

DENSE = "dense"
DISPLAYED_MODEL_CHARS = 40


class CellModel(Part):
    """What of a model choice changes numbers; the device it runs on is not part of a cell."""

    name: str
    dtype: str | None
    attn_implementation: str | None
    revision: str | None
    trust_remote_code: bool
    fingerprint: str | None = Field(description="of a local folder or file; None for names that pin themselves")


class CellProtocol(Part):
    """One protocol with everything that its scores depend on."""

    name: str
    version: str
    source: str = Field("built-in", description="as method_source")
    limit: int | None
    sources: tuple[str, ...]
    prompt: str | None
    bos: Bos = "tokenizer"
    chat_template: bool | str | None = None
    system: str | None = None
    seed: int


class CellConfig(Part):
    """Everything that one row of the leaderboard depends on, defaults filled in."""

    format: int = CELL_FORMAT
    model: CellModel
    method: str
    method_config: dict[str, Any]
    method_source: str = Field(description="built-in, or the hash of the plugin's code")
    sparsity: float | None
    basis: str
    seed: int
    recovery: str
    recovery_config: dict[str, Any]
    recovery_source: str = Field(description="as method_source")
    calibration: CalibrationConfig | None
    protocols: tuple[CellProtocol, ...]
    efficiency: EfficiencySettings
    data: str = Field(description="embedded, or the fingerprint of the --data folder")
    synthetic: bool

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of this config: the name of the cell's folder."""
        return short_id(self.model_dump(mode="json"))

    @property
    def is_dense(self) -> bool:
        return self.method == DENSE

    @property
    def title(self) -> str:
        """`model method 0.20 seed 1 recovery`, leaving out what is at its plainest."""
        model = self.model.name.rstrip("/").rsplit("/", 1)[-1].removeprefix("embedded:")
        parts = [model if len(model) <= DISPLAYED_MODEL_CHARS else model[: DISPLAYED_MODEL_CHARS - 1] + "…", self.method]
        if self.sparsity is not None:
            parts.append(f"{self.sparsity:.2f}" if round(self.sparsity, 2) == self.sparsity else f"{self.sparsity:g}")
        if self.seed:
            parts.append(f"seed {self.seed}")
        if self.recovery != "none":
            parts.append(self.recovery)
        return " ".join(parts)

    # What each stage reads of the config; its other inputs are the hashes of the artifacts before it.

    def prune_inputs(self) -> dict[str, Any]:
        keys = ("format", "model", "method", "method_config", "method_source", "sparsity", "basis", "seed", "calibration", "data")
        return self._some(keys)

    def recover_inputs(self) -> dict[str, Any]:
        return self._some(("recovery", "recovery_config", "recovery_source", "seed", "data"))

    def evaluate_inputs(self) -> dict[str, Any]:
        return self._some(("protocols", "data"))

    def efficiency_inputs(self) -> dict[str, Any]:
        return self._some(("efficiency",))

    def _some(self, keys: tuple[str, ...]) -> dict[str, Any]:
        whole = self.model_dump(mode="json")
        return {key: whole[key] for key in keys}
