"""A training run, as a user says it: one YAML file, checked before anything starts.

Derived values (steps, warm-up steps, accumulation, FLOPs) are not here; they live in `planning.Plan`."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stablelm.config.card import CardConfig
from stablelm.config.model import ModelConfig, preset
from stablelm.config.schema import Schema, apply_overrides, commented_yaml, read_yaml, validate


class PhaseConfig(Schema):
    """A part of the run with a mixture of its own. Each source goes on where the phases before it stopped."""

    epochs: dict[str, float | str]
    """Source name → epochs that this phase adds, honoured exactly; a source may come or go."""
    until_step: int | None = Field(None, ge=1)
    """The optimizer step of the run after which this phase ends although its epochs are not complete; null
    reads them whole."""
    document_boundaries: bool | None = None
    """As data.document_boundaries, for this phase alone; null takes that."""

    @field_validator("epochs")
    @classmethod
    def _positive(cls, epochs: dict[str, float | str]) -> dict[str, float | str]:
        if not epochs:
            raise ValueError("name at least one source, for example {web: 4}")
        return _positive_epochs(epochs)


class NeoxConfig(Schema):
    """Token files and settings of a GPT-NeoX run whose order of samples is to be continued."""

    paths: list[str] = Field(min_length=1)
    """Prefixes of the .bin and .idx files: train_data_paths, or with `split` the one data_path."""
    weights: list[float] = Field(default_factory=list)
    """train_data_weights, one for each path; empty gives each the weight 1."""
    split: str | None = None
    """`split` of a run with a single data_path, such as "969, 30, 1": its first part is read, without
    blending. null for a run with train_data_paths, which reads every document."""
    train_iters: int = Field(ge=1)
    """Steps that the old run was planned for; with batch.sequences they decide its order."""
    tokenizer: str
    """The tokenizer.json of these files, or the directory that holds it."""

    @model_validator(mode="after")
    def _check(self) -> "NeoxConfig":
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(f"{len(self.paths)} paths have {len(self.weights)} weights; give each path one")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError("weights must be above 0; leave the path out instead")
        if self.split is not None and (len(self.paths) > 1 or self.weights):
            raise ValueError("`split` belongs to a single data_path without weights; leave it out")
        if len(self.paths) > 254:
            raise ValueError(f"{len(self.paths)} paths; GPT-NeoX blends fewer than 255")
        return self


class DataConfig(Schema):
    """What is read, how often and in which order."""

    path: str = ""
    """Directory that `stablelm data prepare` wrote; required unless `order` is neox."""
    epochs: dict[str, float | str] = Field(default_factory=dict)
    """Source name → epochs, honoured exactly; fractions as 1.5 or "7/3". Required without `phases`."""
    phases: list[PhaseConfig] = Field(default_factory=list)
    """Instead of `epochs`, to change the mixture during the run: a list of {epochs: {web: 2, code: 1},
    until_step: null, document_boundaries: null}. Each phase says how many epochs it adds; each source goes on
    where the phases before stopped. A run may be resumed with another future: phases added, or the present
    one ended by `until_step`."""
    windows: dict[str, int] = Field(default_factory=dict)
    """Source name → use only its first this many windows of batch.sequence_length tokens; empty uses all."""
    skip: list[tuple[int, int]] = Field(default_factory=list)
    """[first, last] sample numbers to leave out, such as those of the steps before a loss spike
    (`first_sample` and `last_sample` in metrics.jsonl). A run may be resumed with more of them ahead."""
    document_boundaries: bool = False
    """Attention stays within a document, and positions start anew in each. The original run is reported to
    have had this in its last phase only. Held-out loss is always measured without."""
    order: Literal["stablelm", "neox"] = "stablelm"
    """neox repeats the order of a GPT-NeoX run, to continue it; it wants `neox`."""
    neox: NeoxConfig | None = None
    """For order neox: {paths: [prefix of .bin and .idx, …], weights: [1.0, …], split: null, train_iters:
    steps of the old run, tokenizer: its tokenizer.json}."""

    @field_validator("epochs")
    @classmethod
    def _positive(cls, epochs: dict[str, float | str]) -> dict[str, float | str]:
        return _positive_epochs(epochs)

    @field_validator("skip")
    @classmethod
    def _ranges(cls, skip: list[tuple[int, int]]) -> list[tuple[int, int]]:
        for first, last in skip:
            if not 0 <= first <= last:
                raise ValueError(f"[{first}, {last}] is no range of sample numbers; write [first, last]")
        return skip

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.order == "neox":
            if self.neox is None:
                raise ValueError("order neox wants the section `neox`: paths, train_iters, tokenizer")
            given = [name for name in ("path", "epochs", "phases", "windows") if getattr(self, name)]
            if given:
                raise ValueError(f"order neox reads data.neox alone; leave out {', '.join(given)}")
            return self
        if self.neox is not None:
            raise ValueError("the section `neox` wants order: neox")
        if not self.path:
            raise ValueError("path is required: the directory that `stablelm data prepare` wrote")
        if self.epochs and self.phases:
            raise ValueError("epochs and phases are both given; keep one (epochs are one phase)")
        if not self.epochs and not self.phases:
            raise ValueError("name at least one source, for example epochs: {web: 4}")
        unknown = sorted(set(self.windows) - set(self.sources()))
        if unknown:
            where = "data.phases do" if self.phases else "data.epochs does"
            raise ValueError(f"data.windows names {unknown[0]!r}, which {where} not")
        return self

    def all_phases(self) -> list[PhaseConfig]:
        """The phases; `epochs` alone are one; none in order neox, which has no epochs."""
        return [PhaseConfig(epochs=self.epochs)] if self.epochs else list(self.phases)

    def sources(self) -> list[str]:
        """Names of the sources, in the order of the alphabet."""
        return sorted({name for phase in self.all_phases() for name in phase.epochs})


def _positive_epochs(epochs: dict[str, float | str]) -> dict[str, float | str]:
    for name, value in epochs.items():
        if as_fraction(value) <= 0:
            raise ValueError(
                f"source {name!r}: epochs must be above 0, not {value}; leave the source out instead"
            )
    return epochs


def as_fraction(value: float | str) -> Fraction:
    """An epoch count as an exact rational: 1.5, "1.15" and "7/3" mean what they print."""
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a number or a fraction such as 7/3") from None


class BatchConfig(Schema):
    """How many tokens one optimizer step reads, and in which pieces."""

    sequences: int = Field(1024, ge=1)
    """Sequences in one optimizer step, over all processes."""
    micro_sequences: int = Field(4, ge=1)
    """Sequences in one forward and backward pass; the rest of the step is accumulated. Never changes the
    order."""
    sequence_length: int = Field(4096, ge=2)
    """Tokens in one training window."""


class OptimizerConfig(Schema):
    """AdamW (Loshchilov & Hutter, 2019). Matrices and embeddings decay; LayerNorm weights and biases do
    not."""

    lr: float = Field(3.2e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay of the decayed group."""
    clip: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1")
        return betas


class ScheduleConfig(Schema):
    """Learning rate over the run: linear warm-up, then cosine to a floor (GPT-NeoX's formula)."""

    warmup: float = Field(0.005, ge=0, lt=1)
    """Share of the steps spent warming up."""
    floor: float = Field(0.04, ge=0, le=1)
    """Last learning rate, as a share of the peak."""


class CheckpointConfig(Schema):
    """When the run is saved. The last step is always saved."""

    every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints stay on the disk."""


class EvaluationConfig(Schema):
    """Loss and bits per byte on the held-out documents during training."""

    every: int = Field(1000, ge=1)
    """Steps between evaluations; the last step is always evaluated."""
    windows: int = Field(64, ge=1)
    """Windows read per source and evaluation."""


class LoggingConfig(Schema):
    """What is written while the run goes on; `metrics.jsonl` always is."""

    every: int = Field(10, ge=1)
    """Steps between lines on the console. Every step is in metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs `pip install stablelm[track]`)."""


class RunConfig(Schema):
    """One training run."""

    out: str = Field("runs/stablelm", min_length=1)
    """Directory of the run: metrics, checkpoints, report."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """Architecture; `preset: NAME` starts from a named one and the other keys change it."""
    init: str | None = None
    """Start from the weights in this directory (`stablelm init`, any Hugging Face StableLM) or of this Hub id
    instead of from the seed."""
    data: DataConfig
    """What is read."""
    batch: BatchConfig = Field(default_factory=BatchConfig)
    """Batch size."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Optimizer."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; null trains until every source has had its epochs."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward; weights, moments and the loss are always float32."""
    loss_chunk: int = Field(512, ge=1)
    """Tokens whose logits are alive at once in the cross-entropy."""
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Checkpoints."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Held-out evaluation."""
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    """Logs."""
    card: CardConfig = Field(default_factory=CardConfig)
    """What `stablelm export` writes into the model card."""
    seed: int = Field(1234, ge=0)
    """Fixes the initial weights and the order of the samples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA when there is one."""

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.batch.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"batch.sequence_length {self.batch.sequence_length} is longer than "
                f"model.max_position_embeddings {self.model.max_position_embeddings}"
            )
        return self


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run in a YAML file, with `key=value` overrides; raises `InputError` naming file and key."""
    return validate(RunConfig, apply_overrides(read_yaml(path), overrides), str(path))


def run_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """The run in a mapping; raises `InputError` naming the key."""
    return validate(RunConfig, values, source)


REFERENCE_HEADING = """
Every key of a training run, with its default.
Generated by `make docs` from the field docstrings in stablelm/config/run.py; do not edit.
"""


def reference_yaml() -> str:
    """The commented reference configuration (configs/reference.yml)."""
    example = {"data": {"path": "data/prepared", "epochs": {"web": 4, "code": 1}}}
    return commented_yaml(RunConfig, REFERENCE_HEADING, example)


SMALL_HEADING = """
A 15M-parameter StableLM for a CPU or a small GPU, on your own text prepared with configs/data/example.yml.
Generated by `make docs`; copy it and change what you like, a key left out keeps its default.
"""


def small_yaml() -> str:
    """A commented run of a small model (configs/small.yml)."""
    values = {
        "out": "runs/small",
        "model": preset("stablelm-12m", vocab_size=8192).model_dump(),
        "data": {"path": "data/prepared", "epochs": {"web": 4, "code": 1}},
        "batch": {"sequences": 32, "micro_sequences": 8, "sequence_length": 512},
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup": 0.02},
        "checkpoint": {"every": 100},
        "evaluation": {"every": 100, "windows": 32},
    }
    return commented_yaml(RunConfig, SMALL_HEADING, values)
