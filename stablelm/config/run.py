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


class DataConfig(Schema):
    """The prepared dataset and how often each of its sources is read."""

    path: str
    """Directory that `stablelm data prepare` wrote."""
    epochs: dict[str, float | str]
    """Source name → epochs, honoured exactly; fractions as 1.5 or "7/3"."""
    windows: dict[str, int] = Field(default_factory=dict)
    """Source name → use only its first this many windows of batch.sequence_length tokens; empty uses all."""

    @field_validator("epochs")
    @classmethod
    def _positive(cls, epochs: dict[str, float | str]) -> dict[str, float | str]:
        if not epochs:
            raise ValueError("name at least one source, for example {web: 4}")
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
        unknown = set(self.data.windows) - set(self.data.epochs)
        if unknown:
            raise ValueError(f"data.windows names {sorted(unknown)[0]!r}, which data.epochs does not")
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
