"""The schema of a record, as pydantic models. Import it from `leaderboard.record`, which also reads and writes files."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

Status = Literal["done", "skipped", "failed", "interrupted", "out_of_memory"]


def _none_to_nan(value: Any) -> Any:
    return float("nan") if value is None else value


Number = Annotated[float, BeforeValidator(_none_to_nan)]
"""A float that may be NaN: JSON has no NaN, so null and "NaN" both read as NaN (the page then says so)."""


class _Part(BaseModel):
    # NaN and infinity are written as strings, so that the file stays valid JSON.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())


class _FromResult(_Part):
    """A copy of another room's result: fields this format does not know are kept in `extra`, not lost."""

    extra: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def from_result(cls, result: Any) -> Self:
        """Copy a pydantic model (or mapping) of another room into this format."""
        data = result.model_dump() if isinstance(result, BaseModel) else dict(result)
        return cls.model_validate(cls._sort_fields(data))

    @classmethod
    def _sort_fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        known = {k: v for k, v in data.items() if k in cls.model_fields}
        unknown = {k: _plain(v) for k, v in data.items() if k not in cls.model_fields}
        known["extra"] = {**(known.get("extra") or {}), **unknown}
        return known


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


class Estimate(_Part):
    """A value with its standard error. Also accepts `(value, stderr)` and a bare number."""

    value: Number
    stderr: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, data: Any) -> Any:
        if isinstance(data, list | tuple) and len(data) == 2:
            return {"value": data[0], "stderr": data[1]}
        if isinstance(data, int | float):
            return {"value": data}
        return data


class TaskScore(_FromResult):
    """One task of one protocol, with the metric that the protocol names."""

    task: str
    metric: str
    value: Number
    stderr: float | None = None
    n: int = Field(0, ge=0, description="documents scored")
    shots: int = Field(0, ge=0)
    split: str = ""
    source: str = Field("", description="data-dir | hub | embedded | synthetic")
    source_hash: str | None = None
    higher_is_better: bool = True
    definition: str = ""
    chance: float | None = Field(None, description="expected value of guessing, same unit as value")
    all_metrics: dict[str, Estimate] = Field(default_factory=dict)
    truncated: int = Field(0, ge=0, description="documents whose context was cut")
    notes: list[str] = Field(default_factory=list)
    samples_file: str | None = Field(None, description="parquet, relative to the cell's folder")

    @model_validator(mode="before")
    @classmethod
    def _notes_as_list(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("notes"), str):
            data = {**data, "notes": [data["notes"]] if data["notes"] else []}
        return data


class ProtocolScore(_FromResult):
    """All tasks of one protocol, and the mean exactly as that protocol defines it."""

    protocol: str
    version: str = ""
    definition: str = ""
    tasks: list[TaskScore] = Field(default_factory=list)
    mean: Estimate | None = None
    chance: float | None = None
    margin: float | None = Field(None, description="mean minus chance")

    @model_validator(mode="before")
    @classmethod
    def _version_as_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("version"), int | float):
            data = {**data, "version": str(data["version"])}
        return data

    @classmethod
    def from_result(cls, result: Any) -> Self:
        data = result.model_dump() if isinstance(result, BaseModel) else dict(result)
        data = cls._sort_fields(data)
        data["tasks"] = [TaskScore.from_result(t) for t in data.get("tasks", [])]
        return cls.model_validate(data)


class EfficiencyScore(_FromResult):
    """Speed and memory of the sliced model on this machine."""

    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    macs_per_token: float | None = None
    repeats: int | None = None
    spread: dict[str, float] = Field(default_factory=dict, description="per quantity: relative spread of the repeats")


class LayerShape(_Part):
    """What stays of one decoder layer."""

    layer: int = Field(ge=0)
    kv_groups_kept: int = Field(ge=0)
    kv_groups_total: int = Field(ge=0)
    q_heads_kept: int = Field(ge=0)
    q_heads_total: int = Field(ge=0)
    ffn_kept: int = Field(ge=0)
    ffn_total: int = Field(ge=0)
    attn: bool = True
    mlp: bool = True


class StageCost(_Part):
    """What one stage of a cell cost."""

    name: str
    seconds: float = Field(0.0, ge=0)
    peak_memory_bytes: int | None = None
    tokens: int | None = Field(None, description="tokens that the stage pushed through the model")
    training_tokens: int | None = Field(
        None, ge=0, description="tokens of training text that passed forward and back, prompts included, padding not; 0: it did not train"
    )
    label_tokens: int | None = Field(None, ge=0, description="of these the ones that carried a loss")
    calibration_tokens: int | None = Field(None, ge=0, description="tokens of calibration text that the stage was given; 0: none")


class RunBlock(_Part):
    """What was asked and how it went."""

    cell_id: str = Field(min_length=1, description="hash of the resolved config of the cell")
    config: dict[str, Any] = Field(default_factory=dict)
    model: str
    method: str
    sparsity: float | None = Field(None, description="target; None for the dense cell")
    basis: str = "total"
    seed: int = 0
    recovery: str = "none"
    status: Status
    reason: str = ""
    synthetic: bool = False
    depends_on_seed: bool | None = Field(
        None, description="whether the result hangs on random draws (beyond which calibration text is drawn); None: not said"
    )
    command: str = Field("", description="the command that produces this record again")
    stages: list[StageCost] = Field(default_factory=list)
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Metrics(_Part):
    """What came out."""

    params_total: int | None = None
    params_blocks: int | None = None
    dense_params_total: int | None = None
    dense_params_blocks: int | None = None
    achieved_sparsity_total: float | None = None
    achieved_sparsity_blocks: float | None = None
    disk_bytes: int | None = None
    shapes: list[LayerShape] = Field(default_factory=list)
    hidden_kept: int | None = None
    hidden_total: int | None = None
    scores: list[ProtocolScore] = Field(default_factory=list)
    efficiency: EfficiencyScore | None = None
    curves: dict[str, list[tuple[float, Number]]] = Field(default_factory=dict, description="name -> [step, value]")


class Provenance(_Part):
    """What it was made from."""

    model: dict[str, Any] = Field(default_factory=dict, description="source, revision, sha256 of the weights")
    data: list[dict[str, Any]] = Field(default_factory=list, description="source and hash of every data set used")
    packages: dict[str, str] = Field(default_factory=dict)
    python: str = ""
    platform: str = ""
    cpu: str = ""
    gpu: str | None = None
    threads: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    seeds: dict[str, int] = Field(default_factory=dict)
    masks_sha256: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)


class Record(_Part):
    """One cell of the grid."""

    schema_version: int = SCHEMA_VERSION
    run: RunBlock
    metrics: Metrics = Field(default_factory=Metrics)
    provenance: Provenance = Field(default_factory=Provenance)
