"""The grid as typed data. YAML only overlays these defaults; unknown keys fail with a suggestion.

Two halves: what a cell *is* (goes into its id) and how the run goes about it (`run:`, which changes no number).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prunebench.evaluation import ProtocolRequest
from prunebench.experiments.shorthands import DEFAULT_MODEL
from prunebench.methods.data import CalibrationConfig
from prunebench.models.loading import ModelSpec
from prunebench.models.special_tokens import Bos


class Part(BaseModel):
    """Base of every config block: frozen, strict keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), strict=False)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Number = Annotated[float, BeforeValidator(_no_bool)]
Sparsity = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, lt=1)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
SbatchOption = Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]
Line = Annotated[str, Field(min_length=1, max_length=400, pattern=r"^[^\r\n]*$")]
Seed = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**32)]


class MethodChoice(Part):
    """One method of the grid; a bare string is its name with the paper's settings."""

    name: Name
    config: dict[str, Any] = Field(default_factory=dict, description="overrides of the method's own settings")


class RecoveryChoice(Part):
    """What happens to every pruned model after slicing, equal for all methods; a bare string is its name."""

    name: Name = "none"
    config: dict[str, Any] = Field(default_factory=dict)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


OneModel = Annotated[ModelSpec, BeforeValidator(_named)]
OneMethod = Annotated[MethodChoice, BeforeValidator(_named)]
OneProtocol = Annotated[ProtocolRequest, BeforeValidator(_named)]
OneRecovery = Annotated[RecoveryChoice, BeforeValidator(_named)]


class Pattern(Part):
    """Cells that an exclude or include talks of; a key left out matches everything."""

    model: str | None = None
    method: str | None = None
    sparsity: Sparsity | None = None
    seed: Seed | None = None
    recovery: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Pattern:
        if not self.model_fields_set:
            raise ValueError("give at least one of model, method, sparsity, seed, recovery")
        return self


class Grid(Part):
    """The axes. Every combination is a cell, less the excludes, plus the includes, plus one dense cell a model."""

    model: Annotated[tuple[OneModel, ...], BeforeValidator(_as_list), Field(min_length=1)] = (ModelSpec(name=DEFAULT_MODEL),)
    method: Annotated[tuple[OneMethod, ...], BeforeValidator(_as_list)] = ()
    sparsity: Annotated[tuple[Sparsity, ...], BeforeValidator(_as_list)] = ()
    seed: Annotated[tuple[Seed, ...], BeforeValidator(_as_list), Field(min_length=1)] = (0,)
    recovery: Annotated[tuple[OneRecovery, ...], BeforeValidator(_as_list), Field(min_length=1)] = (RecoveryChoice(),)
    basis: Literal["total", "blocks"] = Field("total", description="what sparsity counts: all parameters, or decoder layers only")
    dense: bool = Field(True, description="evaluate the unpruned model as a row of its own")
    exclude: tuple[Pattern, ...] = ()
    include: tuple[Pattern, ...] = Field((), description="cells beside the product; each needs method and sparsity")

    @field_validator("include")
    @classmethod
    def _includes_are_whole(cls, value: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
        for pattern in value:
            if pattern.method is None or pattern.sparsity is None:
                raise ValueError("an include needs at least method and sparsity")
        return value


class Evaluation(Part):
    """How the protocols are run."""

    limit: Count | None = Field(None, ge=1, description="documents a task where the protocol entry gives none")
    seed: Seed = 0
    prompt: str | None = Field(None, description="text put before every request; or file:PATH, or compresso:training for that method's own")
    bos: Bos = Field("tokenizer", description="whether a text begins with BOS: as the tokenizer does it, always or never")
    chat_template: bool | Name | None = Field(
        None, description="true for requests in the tokenizer's chat template, or the name of one of several"
    )
    system: Name | None = Field(None, description="text of the chat's system message")

    @field_validator("chat_template")
    @classmethod
    def _false_is_none(cls, value: bool | str | None) -> bool | str | None:
        return value or None

    @model_validator(mode="after")
    def _system_is_shown(self) -> Evaluation:
        if self.system is not None and self.chat_template is None:
            raise ValueError("system is given without chat_template, so no request would hold it; add chat_template: true")
        return self


class EfficiencySettings(Part):
    """Speed and memory of the checkpoint on the machine of the run."""

    enabled: bool = True
    prompt_tokens: Count = Field(128, ge=1)
    new_tokens: Count = Field(16, ge=2)
    repeats: Count = Field(3, ge=1)


SLURM_SET_HERE = {
    **{name: f"run.slurm.{name}" for name in ("partition", "account", "qos", "constraint")},
    "time": "run.slurm.time_minutes",
    "cpus-per-task": "run.cpus_per_cell",
    "gpus-per-node": "run.gpus_per_cell",
    "mem": "run.memory_gb_per_cell",
    **dict.fromkeys(("array", "error", "job-name", "nodes", "ntasks", "open-mode", "output", "signal"), "the run itself"),
}


class SlurmSettings(Part):
    """What a SLURM job asks for beside cpus_per_cell, gpus_per_cell and memory_gb_per_cell."""

    cluster: Literal["slurm", "local"] = Field("slurm", description="local runs the jobs as processes of this machine, to try a grid")
    time_minutes: Count = Field(1440, ge=1, description="time limit of a job; SLURM ends it then, and the cell is recorded as failed")
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = Field(None, description="features that the node must have, e.g. a100")
    setup: tuple[Line, ...] = Field((), description="shell lines that run before the job, e.g. module load cuda")
    options: dict[SbatchOption, Literal[True] | Count | Line] = Field(
        default_factory=dict, description="any other options of sbatch, e.g. {reservation: course}; true for those that take no value"
    )

    @field_validator("options")
    @classmethod
    def _options_have_no_setting_of_their_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in SLURM_SET_HERE:
                raise ValueError(f"{name} is set by {SLURM_SET_HERE[name]}")
        return value


class RunSettings(Part):
    """How the run goes about it; nothing here changes a number, so nothing here is part of a cell's id."""

    executor: Literal["local", "processes", "ray", "slurm"] = "local"
    workers: Count = Field(1, ge=1, le=1024, description="cells at a time (processes), or jobs in the queue at a time (slurm)")
    address: str | None = Field(None, description="Ray cluster to join, e.g. auto or 10.0.0.1:6379; None: RAY_ADDRESS, or one started here")
    cpus_per_cell: Number = Field(1, gt=0, description="CPUs that a Ray task or SLURM job asks for, and torch threads of one process")
    gpus_per_cell: Number = Field(0, ge=0, description="GPUs that a Ray task or SLURM job asks for")
    memory_gb_per_cell: Number | None = Field(None, gt=0, description="memory that a cell may take (processes) or asks for (ray, slurm)")
    cell_minutes: Number | None = Field(None, gt=0, description="a cell that takes longer is ended and recorded as failed (not with local)")
    silent_minutes: Number | None = Field(
        None, gt=0, description="a cell that reports no progress for so long is ended and recorded as failed (processes)"
    )
    slurm: SlurmSettings = SlurmSettings()
    token_budget: Count | None = Field(None, ge=256, description="tokens in one forward pass of the evaluator; None lets it choose")
    keep_checkpoints: bool = Field(True, description="keep pruned checkpoints after their record is written")

    @model_validator(mode="after")
    def _slurm_counts_whole_devices(self) -> RunSettings:
        for name in ("cpus_per_cell", "gpus_per_cell"):
            if self.executor == "slurm" and getattr(self, name) % 1:
                raise ValueError(f"{name} = {getattr(self, name):g} with executor slurm: expected a whole number, SLURM shares no device")
        return self


class GridConfig(Part):
    """One file under configs/."""

    name: str = Field("unnamed", min_length=1, max_length=100)
    description: str = ""
    synthetic: bool = Field(False, description="the data is generated; such rows never stand beside real benchmarks")
    grid: Grid = Grid()
    calibration: CalibrationConfig = CalibrationConfig()
    method_config: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings of methods, by name, for the whole grid")
    protocols: Annotated[tuple[OneProtocol, ...], BeforeValidator(_as_list)] = ()
    evaluation: Evaluation = Evaluation()
    efficiency: EfficiencySettings = EfficiencySettings()
    run: RunSettings = RunSettings()
